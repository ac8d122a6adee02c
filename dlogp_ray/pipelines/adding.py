"""What adds up, of all objects of a run: each is looked at once, and the sums meet in a tree.

    objects -> sum of some objects (CPU tasks) -> sums of FAN_IN sums (CPU tasks) -> one

No row passes through the driver: a task gives a sum, however many objects it has looked at.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray

from dlogp_ray.errors import DlogpError, Refused
from dlogp_ray.pipelines.progress import counted

T = TypeVar("T")

TASKS_PER_CPU = 16
"""Few enough that their sums are small beside the table, and enough that CPUs end together."""
FAN_IN = 8
_AT_ONCE_PER_CPU = 2
"""Tasks that run or wait."""
_RETRIES = 3
"""Of a task whose process died: looking changes nothing."""


def added_up(
    objects: Sequence[str],
    look: Callable[[str], T],
    add: Callable[[Sequence[T]], T],
    *,
    what: str = "reading",
    progress: bool,
) -> T:
    """The sum of what ``look`` makes of each object.

    Args:
        objects: Addresses.
        look: An object's.
        add: The sum of several; of none, what there is before the first.
        what: That is done to objects, for its progress.
        progress: Show it on standard error.

    Raises:
        Damaged: An object can't be read.
    """
    cpus = int(ray.cluster_resources().get("CPU", 1))
    tasks = max(1, min(len(objects), cpus * TASKS_PER_CPU))
    shares = [objects[index::tasks] for index in range(tasks)]
    look_at: Any = ray.remote(_look_at).options(num_returns=2, max_retries=_RETRIES)
    add_up: Any = ray.remote(_add_up).options(num_returns=2, max_retries=_RETRIES)
    # Of each task, how many objects it has looked at, and its sum.
    sums: dict[Any, Any] = {}
    ready: list[Any] = []
    with counted(what, len(objects), "objects", enabled=progress) as advance:
        while shares or sums:
            # Few at once: what fails is not cancelled, for a task of Ray 2.60 that ends just then
            # ends this process.
            while shares and len(sums) < _AT_ONCE_PER_CPU * cpus:
                count, one = look_at.remote(shares.pop(), look, add)
                sums[count] = one
            done, _ = ray.wait(list(sums), num_returns=1)
            for _ in range(_get(done[0])):
                advance()
            ready.append(sums.pop(done[0]))
            if len(ready) == FAN_IN:
                count, one = add_up.remote(add, *ready)
                sums[count], ready = one, []
    return add([_get(one) for one in ready])


def _look_at(
    objects: Sequence[str], look: Callable[[str], T], add: Callable[[Sequence[T]], T]
) -> tuple[int | DlogpError, T | None]:
    try:
        whole = add([])
        for uri in objects:
            whole = add([whole, look(uri)])
    except DlogpError as error:  # an error that no one asks for is logged with a traceback
        return error, None
    return len(objects), whole


def _add_up(add: Callable[[Sequence[T]], T], *sums: T) -> tuple[int | DlogpError, T | None]:
    try:
        return 0, add(sums)
    except DlogpError as error:
        return error, None


def _get(one: Any) -> Any:
    """What a task gave.

    Raises:
        DlogpError: As the task did.
        Refused: Its process died, every time.
    """
    try:
        found = ray.get(one)
    except ray.exceptions.RayError as error:
        if getattr(error, "cause", None) is not None:
            raise
        raise Refused(
            f"a process that reads the run died, {_RETRIES + 1} times, perhaps for want of memory "
            f"({type(error).__name__}: {error})"
        ) from None
    if isinstance(found, DlogpError):
        raise found
    return found
