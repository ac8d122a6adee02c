"""What does the work of a job: one interface, for this process (``here``) and ``through_ray``."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dlogp_ray.config import RunConfig
from dlogp_ray.corpus.units import Unit
from dlogp_ray.pipelines.job import Job
from dlogp_ray.pipelines.placement import Node, Placement
from dlogp_ray.tables.calls import Call

Row = dict[str, Any]
T = TypeVar("T")


class Actor(Protocol):
    """What holds the policies: made of (job, device, threads, spread=), and called with a row."""

    def __call__(self, row: Row) -> Row:
        """The row with what became of it; ``counts`` are for metrics."""

    def adopt(self, job: Any) -> bool:
        """Go on with ``job``, if what is loaded is what it needs."""


@dataclass(frozen=True)
class Stages:
    """What becomes of a unit; each takes a row and gives it on.

    Attributes:
        read: A function of (row, *, job): descriptor -> checked input.
        actor: A class that holds the policies, an ``Actor``.
        write: A function of (row, *, job): creates the object, and gives a receipt.
        counts: What ``Unit.tokens`` counts.
    """

    read: Callable[..., Row]
    actor: Callable[..., Actor]
    write: Callable[..., Row]
    counts: str = "tokens"


class Ended(Exception):
    """The executor ended an execution before its end, and says why."""


class Execution(Protocol):
    """Actors that are there, or come to be, for units of one job."""

    wave: int
    """Units that it takes at a time."""

    def receipts(self, units: Sequence[Unit]) -> Generator[Row]:
        """A row for each unit whose processes lived: index, created, error, and what was done.

        Raises:
            Ended: Before its end.
        """

    def waiting(self, units: int) -> None:
        """So many are left, for whoever watches."""


class Executor(Protocol):
    """Where a job's policies are tried, and its units done.

    Attributes:
        call: The record of this call.
    """

    call: Call

    def place(
        self, config: RunConfig, threads: int | None = None, *, progress: bool = False
    ) -> Placement:
        """Where actors go.

        Args:
            config: The job.
            threads: Of an actor, where the run has that already.
            progress: Say on standard error what is waited for.

        Raises:
            Refused: There is no room for them.
        """

    def node(self) -> Node:
        """What every machine has at least."""

    def attempt(
        self, placement: Placement, work: Callable[..., tuple[T, Actor]], *arguments: Any
    ) -> T:
        """What ``work`` finds out with the resources of one actor, which it makes for that.

        Raises:
            Refused: It failed, or its process died.
        """

    def doing(
        self, job: Job, stages: Stages, placement: Placement
    ) -> AbstractContextManager[Execution]:
        """For a job's units."""
