"""What adds up, of all objects of a run, through Ray: the sums meet in a tree (``folding``).

How many levels one task goes through follows from the CPUs. No row passes through the driver: a
task gives a sum, however many objects it has looked at.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray

from dlogp_ray.errors import DlogpError, Refused
from dlogp_ray.pipelines.run.progress import counted
from dlogp_ray.pipelines.run.room import wait_for_room
from dlogp_ray.pipelines.run.tree import FAN_IN, in_order, sum_of

Object = TypeVar("Object")
T = TypeVar("T")

TASKS_PER_CPU = 16
"""Few enough that their sums are small beside the table, and enough that CPUs end together."""
_AT_ONCE_PER_CPU = 2
"""Tasks that run or wait."""
_RETRIES = 3
"""Of a task whose process died: looking changes nothing."""


def added_up(
    objects: Sequence[Object],
    look: Callable[[Object], T],
    add: Callable[[Sequence[T]], T],
    *,
    what: str = "reading",
    progress: bool,
) -> T:
    """The sum of what ``look`` makes of each object.

    Args:
        objects: Which.
        look: An object's.
        add: The sum of several; of none, what there is before the first.
        what: That is done to objects, for its progress.
        progress: Show it on standard error.

    Raises:
        Damaged: An object can't be read.
    """
    wait_for_room(1, 1, 0)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    share = 1  # objects of a task: the most that leave tasks enough
    while len(objects) > share * FAN_IN * TASKS_PER_CPU * cpus:
        share *= FAN_IN
    shares = deque(enumerate(objects[at : at + share] for at in range(0, len(objects), share)))
    widths = [len(shares)]  # sums of each level of the tree, the tasks' own first
    while widths[-1] > 1:
        widths.append(-(-widths[-1] // FAN_IN))
    look_at: Any = ray.remote(_look_at).options(num_returns=2, max_retries=_RETRIES)
    add_up: Any = ray.remote(_add_up).options(num_returns=2, max_retries=_RETRIES)
    # Of each task, how many objects it has looked at -> its place in the tree, and its sum.
    running: dict[Any, tuple[int, int, Any]] = {}
    sums: dict[tuple[int, int], Any] = {}
    with counted(what, len(objects), "objects", enabled=progress) as advance:
        while shares or running:
            # Few at once: what fails is not cancelled, for a task of Ray 2.60 that ends just then
            # ends this process.
            while shares and len(running) < _AT_ONCE_PER_CPU * cpus:
                at, some = shares.popleft()
                count, total = look_at.remote(some, look, add)
                running[count] = (0, at, total)
            done, _ = ray.wait(list(running), num_returns=1)
            for _ in range(_get(done[0])):
                advance()
            level, at, total = running.pop(done[0])
            sums[level, at] = total
            first = at - at % FAN_IN
            siblings = [(level, i) for i in range(first, min(first + FAN_IN, widths[level]))]
            if widths[level] > 1 and all(sibling in sums for sibling in siblings):
                count, total = add_up.remote(add, *(sums.pop(sibling) for sibling in siblings))
                running[count] = (level + 1, at // FAN_IN, total)
    return _get(next(iter(sums.values()))) if sums else add([])


def _look_at(
    objects: Sequence[Object], look: Callable[[Object], T], add: Callable[[Sequence[T]], T]
) -> tuple[int | DlogpError, T | None]:
    try:
        return len(objects), sum_of(objects, look, add)
    except DlogpError as error:  # an error that no one asks for is logged with a traceback
        return error, None


def _add_up(add: Callable[[Sequence[T]], T], *sums: T) -> tuple[int | DlogpError, T | None]:
    try:
        return 0, in_order(add, sums)
    except DlogpError as error:
        return error, None


def _get(reference: Any) -> Any:
    """What a task gave.

    Raises:
        DlogpError: As the task did.
        Refused: Its process died, every time.
    """
    try:
        value = ray.get(reference)
    except ray.exceptions.RayError as error:
        if getattr(error, "cause", None) is not None:
            raise
        raise Refused(
            f"a process that reads the run died, {_RETRIES + 1} times, perhaps for want of memory "
            f"({type(error).__name__}: {error})"
        ) from None
    if isinstance(value, DlogpError):
        raise value
    return value
