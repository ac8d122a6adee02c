"""What does the work of a job: one interface, for this process (``here``) and ``through_ray``."""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dlogp_ray.config import RunConfig
from dlogp_ray.corpus.units import Unit
from dlogp_ray.pipelines.run.job import Job
from dlogp_ray.pipelines.run.placement import Node, Placement
from dlogp_ray.pipelines.run.row import Row
from dlogp_ray.tables.calls import Call

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
        actor: A class that holds the policies, an ``Actor``; None where nothing needs any.
        write: A function of (row, *, job): creates the object, and gives a receipt.
        counts: What ``Unit.tokens`` counts.
    """

    read: Callable[..., Row]
    actor: Callable[..., Actor] | None
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

    def everywhere(self) -> Placement:
        """Where workers go that hold no policies: one a CPU."""

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


class Where(Protocol):
    """Chooses the executor of a job that makes a run, as more becomes known."""

    def tried(self, job: Any, amount: int, died: Counter[str]) -> Executor:
        """Where the policies are tried, or what else comes before the units.

        Args:
            job: With absolute addresses.
            amount: What is to be done, as ``Unit.tokens`` counts it.
            died: Units that a process died with.

        Raises:
            Refused: It is to be done here, and this process has too little for it.
        """

    def done(self, executor: Executor, seconds: float) -> Executor:
        """Where the units are done.

        Args:
            executor: What ``tried`` gave.
            seconds: What all units take one actor.
        """
