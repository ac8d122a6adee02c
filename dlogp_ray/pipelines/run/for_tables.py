"""Work over all objects of a run: in this process where that is sooner, or through Ray."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from dlogp_ray.config.job import RunOn
from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.run.cost import settled
from dlogp_ray.pipelines.run.executor import Executor, Where
from dlogp_ray.pipelines.run.here import Here
from dlogp_ray.pipelines.run.job import Job
from dlogp_ray.pipelines.run.joined_ray import through_ray
from dlogp_ray.pipelines.run.progress import counted
from dlogp_ray.pipelines.run.tree import sum_of

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


class ForTables(Where):
    """Of a job that makes a table from a run's.

    Args:
        asked: By the config.
        tokens: Of the run.
    """

    def __init__(self, asked: RunOn, tokens: int) -> None:
        """Nothing is chosen yet."""
        self._asked, self._tokens = asked, tokens

    def tried(self, job: Job, amount: int, died: Counter[str]) -> Executor:
        """In this process where the table is small, and no process died with one of its units."""
        asked: RunOn = "ray" if died and self._asked == "auto" else self._asked
        if tables_on(asked, self._tokens) == "ray":
            return through_ray()
        return Here(died, alone=True)

    def done(self, executor: Executor, seconds: float) -> Executor:
        """The same."""
        return executor


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
        from dlogp_ray.pipelines.run.ray_fold import added_up as by_ray

        return by_ray(objects, look, add, what=what, progress=progress)
    with counted(what, len(objects), "objects", enabled=progress) as advance:

        def looked(item: Object) -> T:
            seen = look(item)
            advance()
            return seen

        return sum_of(objects, looked, add) if objects else add([])
