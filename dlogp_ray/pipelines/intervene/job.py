"""What every worker of an intervene job needs to know."""

from dataclasses import dataclass
from typing import ClassVar

from dlogp_ray.config import InterveneConfig
from dlogp_ray.decoding.distribution import Sampling
from dlogp_ray.pipelines.intervene.wanted import Wanted
from dlogp_ray.pipelines.run.job import PolicyJob
from dlogp_ray.tables.kinds import GENERATIONS, Kind


@dataclass(frozen=True)
class InterveneJob(PolicyJob):
    """What every worker of an intervene job needs to know.

    Attributes:
        interventions: All, in the table's order.
        dtype: Policy -> dtype of its weights; None before it is chosen.
        threads: CPU threads of an actor.
        verifier_sha256: Of the user's own verifier when the job was planned; None for ours.
        answers_per_s: What one actor was seen to do without interventions; None before that.
    """

    kind: ClassVar[Kind] = GENERATIONS

    config: InterveneConfig
    interventions: tuple[Wanted, ...]
    verifier_sha256: str | None = None
    dtype: dict[str, str] | None = None
    threads: int = 1
    answers_per_s: float | None = None

    @property
    def speed(self) -> float | None:
        """In answers/s, of one actor."""
        return self.answers_per_s

    @property
    def sampling(self) -> Sampling:
        """Temperature and filters of all draws."""
        config = self.config
        return Sampling(config.temperature, config.top_k, config.top_p, config.min_p)

    @property
    def answers_per_problem(self) -> int:
        """Of each intervention."""
        return self.config.samples * len(self.config.seeds)
