"""Work over all objects of a run that adds up: in this process where that is sooner, or by Ray."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from dlogp_ray.config.job import RunOn
from dlogp_ray.pipelines import session
from dlogp_ray.pipelines.cost import settled
from dlogp_ray.pipelines.folding import sum_of
from dlogp_ray.pipelines.progress import counted

Object = TypeVar("Object")
T = TypeVar("T")

_TOKENS = 3_600_000
"""That one process looks at in a table of scores while a Ray starts: sparsity, the slowest, looked
at 300,000 in a second where a start took 12."""


def tables_on(asked: RunOn, tokens: int) -> Literal["here", "ray"]:
    """Where a table of so many tokens is read; Ray begins to start where it is to be used.

    Raises:
        Refused: It is to be done here, and can't be.
    """
    where = settled(asked)
    if where == "here" or (where == "auto" and tokens <= _TOKENS):
        return "here"
    session.begin()
    return "ray"


def be_there(where: Literal["here", "ray"]) -> None:
    """Wait for Ray where that is where it is done.

    Raises:
        Refused: It does not start, or does not answer.
    """
    if where == "ray":
        session.join()


def added_up(
    objects: Sequence[Object],
    look: Callable[[Object], T],
    add: Callable[[Sequence[T]], T],
    where: Literal["here", "ray"],
    *,
    what: str = "reading",
    progress: bool,
) -> T:
    """The sum of what ``look`` makes of each object.

    Args:
        objects: Which.
        look: An object's.
        add: The sum of several; of none, what there is before the first.
        where: As ``tables_on`` has it.
        what: That is done to objects, for its progress.
        progress: Show it on standard error.

    Raises:
        Damaged: An object can't be read.
    """
    if where == "ray":
        session.join()
        from dlogp_ray.pipelines.adding import added_up as through_ray

        return through_ray(objects, look, add, what=what, progress=progress)
    with counted(what, len(objects), "objects", enabled=progress) as advance:

        def looked(one: Object) -> T:
            found = look(one)
            advance()
            return found

        return sum_of(objects, looked, add) if objects else add([])
