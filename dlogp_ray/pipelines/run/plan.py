"""What a job is to ``make_run``: a run as it was planned, and what becomes of each of its units."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from dlogp_ray.corpus.units import Units, decode_units, encode_units
from dlogp_ray.pipelines.run.clock import PHASES
from dlogp_ray.pipelines.run.executor import Executor, Stages
from dlogp_ray.pipelines.run.job import Job, PolicyJob
from dlogp_ray.pipelines.run.placement import Placement
from dlogp_ray.pipelines.run.progress import Advancing, UnitProgress
from dlogp_ray.tables.info import RunInfo
from dlogp_ray.tables.object_names import UNITS
from dlogp_ray.tables.run import Run

AnyJob = TypeVar("AnyJob", bound=Job)
AnyPolicyJob = TypeVar("AnyPolicyJob", bound=PolicyJob)


@dataclass(frozen=True)
class Ready:
    """What was found out before the first unit.

    Attributes:
        threads: CPU threads of an actor.
        seconds: What all units take one actor.
        noise_s: Seconds that measuring the noise floor took.
        info: The run's record, where the run begins with this call.
    """

    threads: int
    seconds: float
    noise_s: float
    info: RunInfo


@dataclass(frozen=True)
class RunPlan(ABC, Generic[AnyJob]):
    """A checked job that makes a run.

    Attributes:
        job: What the workers need, before anything was measured for it.
        units: As they would be cut now; a run that exists has its own.
        fingerprint: Of everything that changes what comes out.
    """

    job: AnyJob
    units: Units
    fingerprint: dict[str, Any]

    stages: ClassVar[Stages]
    """What becomes of each unit."""
    phases: ClassVar[tuple[str, ...]] = PHASES
    """What its time goes into."""
    preparing: ClassVar[str] = "probe"
    doing: ClassVar[str] = "units"

    @property
    def tokens(self) -> int:
        """Of all units, as ``Unit.tokens`` counts them."""
        return self.units.tokens

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Of the job, for its run's record."""

    @property
    def records(self) -> dict[str, bytes]:
        """More that the run begins with: name -> content."""
        return {}

    @property
    def partial(self) -> bool:
        """Whether the run is sealed although units failed."""
        return False

    @abstractmethod
    def prepare(
        self, executor: Executor, missing: Units, run: Run | None, *, progress: bool
    ) -> Ready:
        """Load and measure what is needed before the first unit.

        Args:
            executor: Where.
            missing: What is to be done.
            run: That exists, if any.
            progress: Say on standard error what is waited for.
        """

    @abstractmethod
    def place(self, executor: Executor, ready: Ready) -> Placement:
        """Where the units' workers go."""

    @abstractmethod
    def recorded(self, run: Run) -> AnyJob:
        """The job as the run's record has it: another call may have begun the run."""

    def own_units(self, run: Run) -> Units:
        """The run's own list of units: another version may cut another way."""
        return decode_units(run.beginning(UNITS)).seen_by(self.units)

    def encoded(self, units: Units) -> bytes:
        """The list of units as the run begins with it."""
        return encode_units(units)

    def check_sources(self) -> None:
        """Check, before the seal, that what the run is made from is still there."""

    def progress(
        self, units: int, tokens: int, *, enabled: bool
    ) -> AbstractContextManager[Advancing]:
        """A bar of its units."""
        return UnitProgress(units, tokens, self.stages.counts, enabled=enabled)


@dataclass(frozen=True)
class PolicyPlan(RunPlan[AnyPolicyJob]):
    """Of a job whose workers hold policies."""

    @property
    def config(self) -> dict[str, Any]:
        """With absolute addresses."""
        return self.job.config.model_dump(mode="json")

    @property
    def partial(self) -> bool:
        """As the config says."""
        return self.job.config.seal_partial

    def place(self, executor: Executor, ready: Ready) -> Placement:
        """As the config says, with the threads that were chosen."""
        return executor.place(self.job.config, ready.threads)
