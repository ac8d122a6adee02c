"""What every worker of a score job needs to know."""

from dataclasses import dataclass
from typing import ClassVar

from dlogp_ray.config import BASE, ScoreConfig
from dlogp_ray.corpus.mapping import PLAIN, RowMap
from dlogp_ray.corpus.rows import RowRules
from dlogp_ray.pipelines.run.job import PolicyJob
from dlogp_ray.policies.packing import TOKEN_BUDGET
from dlogp_ray.scoring.engine import Engine
from dlogp_ray.tables.kinds import SCORES, Kind


@dataclass(frozen=True)
class ScoreJob(PolicyJob):
    """What every worker of a score job needs to know.

    Attributes:
        rules: What rows are checked against.
        maps: How they are made, of each corpus entry.
        engine: How the run scores; None until that is chosen.
    """

    kind: ClassVar[Kind] = SCORES

    config: ScoreConfig
    rules: RowRules
    maps: tuple[RowMap, ...] = (PLAIN,)
    engine: Engine | None = None

    @property
    def base(self) -> str | None:
        """The policy that the others are compared with; None for a policy alone."""
        return BASE if len(self.config.policies) > 1 else None

    @property
    def max_tokens(self) -> int | None:
        """The shortest policy's limit."""
        return self.rules.max_tokens

    @property
    def append_eos(self) -> bool:
        """As the config says."""
        return self.config.append_eos

    @property
    def speed(self) -> float | None:
        """In tokens/s."""
        speeds = self.engine.tokens_per_s.values() if self.engine else ()
        return min(speeds, default=None)

    def default_engine(self, device: str) -> Engine:
        """What the config says, completed for a machine with such a device."""
        config = self.config
        return Engine(
            dtype=self.dtypes(device),
            token_budget=config.token_budget or TOKEN_BUDGET[device],
            compiled=config.compile == "on",
        )
