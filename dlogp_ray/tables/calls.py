"""The calls that made a run: where each did its work, how long that took, what it died at.

An object a call, ``calls/<id>.json``, replaced by that call alone as it goes on.
"""

import os
import socket
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from dlogp_ray import store
from dlogp_ray.errors import Damaged, Unanswered

FOLDER = "calls"
_READERS = 16


class Call(BaseModel):
    """What one call did of a run.

    Attributes:
        id: Its name; they sort by when they began.
        run_on: Where its units were done.
        host: The machine of the call's process.
        process: Its number there.
        process_started: When, by that machine: numbers are used again.
        under_way: Units, by name, that its own process has begun and not ended.
        ended: Whether it came to its end; one that died, or was stopped, did not.
        stopped: The signal that stopped it, where it could say so.
        units_created: Objects that it has created.
        spent: Seconds by what they went into.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    run_on: Literal["here", "ray"]
    host: str
    process: int
    process_started: float
    under_way: tuple[str, ...] = ()
    ended: bool = False
    stopped: str | None = None
    units_created: int = 0
    spent: dict[str, float] = {}

    @property
    def alive(self) -> bool:
        """Whether its process can be seen to live, on this machine."""
        if self.host != socket.gethostname():
            return False
        try:
            return bool(psutil.Process(self.process).create_time() == self.process_started)
        except psutil.NoSuchProcess:
            return False

    def write(self, run_uri: str) -> None:
        """Write the record as it stands, where the store takes it: what it says, no unit needs."""
        with suppress(OSError, Unanswered):  # units come to the same, and say it
            store.replace(f"{run_uri}/{FOLDER}/{self.id}.json", self.model_dump_json().encode())


def this_call(run_on: Literal["here", "ray"]) -> Call:
    """The record of a call that begins now in this process."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    return Call(
        id=f"{now}-{uuid.uuid4().hex[:8]}",
        run_on=run_on,
        host=socket.gethostname(),
        process=os.getpid(),
        process_started=psutil.Process().create_time(),
    )


def read_calls(run_uri: str) -> list[Call]:
    """All calls that have left a record, from the first on.

    Raises:
        Damaged: One can't be read; it is named.
    """
    names = sorted(name for name, _ in store.list_objects(f"{run_uri}/{FOLDER}"))

    def read(name: str) -> Call:
        uri = f"{run_uri}/{FOLDER}/{name}"
        try:
            return Call.model_validate_json(store.read(uri))
        except ValidationError as error:
            raise Damaged(
                f"{uri} can't be read ({error.errors()[0]['msg']}); it says what a call spent its "
                "time on and what it died at, nothing else: delete it"
            ) from None

    return list(store.map_ahead(read, names, _READERS))


def deaths(calls: Sequence[Call], missing: Collection[str]) -> Counter[str]:
    """How often a process has died with a unit under way, since a call last came to its end.

    Args:
        calls: All of a run.
        missing: Units that have no object.

    Returns:
        Unit -> deaths; those without any are left out.
    """
    ends = [index for index, call in enumerate(calls) if call.ended]
    since = calls[ends[-1] + 1 if ends else 0 :]
    return Counter(
        unit for call in since if not call.alive for unit in call.under_way if unit in missing
    )


def spent_in_words(seconds: float, spent: Mapping[str, float]) -> str:
    """For people: the whole, and what of it took a tenth of a second or more."""
    parts = ", ".join(f"{phase} {part:.1f}" for phase, part in spent.items() if part)
    return f"{seconds:.1f} s" + (f": {parts}" if parts else "")
