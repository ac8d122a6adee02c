"""An end to actors that die whenever they load: Ray itself restarts them for ever."""

from contextlib import suppress
from typing import Any

import ray

from dlogp_ray.errors import DlogpError, Refused


class LoadingWatch:
    """An actor that counts how often each other has begun to load since it last got to its end."""

    def __init__(self) -> None:
        """No actor has begun."""
        self._begun: dict[str, int] = {}
        self._refusal: str | None = None

    def begin(self, actor: str) -> int:
        """How many times it has begun now, the last one among them."""
        self._begun[actor] = self._begun.get(actor, 0) + 1
        return self._begun[actor]

    def end(self, actor: str) -> None:
        """It has loaded."""
        self._begun.pop(actor, None)

    def refuse(self, why: str) -> None:
        """It can't load, and Ray ends the job."""
        self._refusal = why

    def refusal(self) -> str | None:
        """Why one could not load; None where all could."""
        return self._refusal


class Loading:
    """A context in which an actor loads its policies.

    Args:
        watch: A ``LoadingWatch``; None outside of an actor.
        attempts: How often an actor may begin.
    """

    def __init__(self, watch: Any, attempts: int) -> None:
        """Nothing is counted before the context is entered."""
        self._watch, self._attempts = watch, attempts

    def __enter__(self) -> None:
        """Count.

        Raises:
            Refused: It has died too often. (An actor whose constructor raises is not restarted.)
        """
        if self._watch is None:
            return
        begun = 1
        with suppress(ray.exceptions.RayError):  # the watch went with its node: go on without
            begun = ray.get(self._watch.begin.remote(_actor_id()))
        if begun > self._attempts:
            raise Refused(
                f"an actor died in each of {self._attempts} attempts to load the policies, perhaps "
                "for want of memory; use fewer actors, or fewer or smaller policies on one"
            )

    def __exit__(self, *error: object) -> None:
        """Take the count back, or leave word."""
        if self._watch is not None and error[0] is None:
            self._watch.end.remote(_actor_id())
        elif self._watch is not None and isinstance(error[1], DlogpError):
            with suppress(ray.exceptions.RayError):
                ray.get(self._watch.refuse.remote(str(error[1])))


def _actor_id() -> str:
    return str(ray.get_runtime_context().get_actor_id())
