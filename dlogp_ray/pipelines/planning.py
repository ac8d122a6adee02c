"""What a score job will do, found out before Ray starts: files, checkpoints, units, fingerprint.

Everything that can be refused without loading weights is refused here, and nothing is written.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from dlogp_ray import store
from dlogp_ray.config import BASE, ScoreConfig
from dlogp_ray.config.run import MAX_ROW_BYTES
from dlogp_ray.corpus.carry import carry_types
from dlogp_ray.corpus.cutting import cut_units
from dlogp_ray.corpus.files import list_corpus
from dlogp_ray.corpus.rows import RowRules
from dlogp_ray.corpus.units import Units
from dlogp_ray.pipelines.job import (
    Job,
    checked_checkpoints,
    known_files,
    policies_fingerprint,
    with_absolute_addresses,
)
from dlogp_ray.scoring.engine import TOKEN_BUDGET, Engine
from dlogp_ray.tables.info import SCHEMA
from dlogp_ray.tables.kinds import SCORES, Kind


@dataclass(frozen=True)
class ScoreJob(Job):
    """What every worker of a score job needs to know.

    Attributes:
        rules: What rows are checked against.
        engine: How the run scores; None until that is chosen.
    """

    kind: ClassVar[Kind] = SCORES

    config: ScoreConfig
    rules: RowRules
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


@dataclass(frozen=True)
class ScorePlan:
    """A checked job.

    Attributes:
        job: What the workers need.
        units: All work units.
        fingerprint: Everything that changes numbers, or the units' cut.
    """

    job: ScoreJob
    units: Units
    fingerprint: dict[str, Any]

    @property
    def tokens(self) -> int:
        """Prompt and response tokens of the corpus, about."""
        return self.units.tokens

    @property
    def size_bytes(self) -> int:
        """Bytes of the corpus, as stored."""
        return self.units.size_bytes


def plan_score(config: ScoreConfig) -> ScorePlan:
    """Check corpus, checkpoints and pair; cut the work units.

    Raises:
        Refused: Something is missing or does not fit.
    """
    config = with_absolute_addresses(config, "corpus")
    files = list_corpus(config.corpus)
    checkpoints = checked_checkpoints(config, append_eos=config.append_eos)
    limits = [c.max_tokens for c in checkpoints.values() if c.max_tokens is not None]
    rules = RowRules(
        vocab_size=min(checkpoint.vocab_size for checkpoint in checkpoints.values()),
        max_tokens=min(limits, default=None),
        columns=config.columns,
        carry=carry_types(config.carry, files[0], config.max_row_bytes),
    )
    fingerprint = {
        SCHEMA: SCORES.schema_version,
        "corpus": {f.uri: {"size_bytes": f.size_bytes, "version": f.version} for f in files},
        "policies": policies_fingerprint(config, checkpoints),
        "columns": config.columns,
        "carry": dict(rules.carry),
        "prompt_format": config.prompt_format,
        "append_eos": config.append_eos,
        "tokenize_with": config.tokenizer_policy,
        "temperature": config.temperature,
        "statistics": config.statistics,
        "unit_tokens": config.unit_tokens,
    }
    job = ScoreJob(config, config.run_uri, rules, known=known_files(checkpoints))
    if config.pairs:
        fingerprint["pairs"] = True
    if config.max_row_bytes != MAX_ROW_BYTES:  # says which rows are rejected
        fingerprint["max_row_bytes"] = config.max_row_bytes
    if config.append_eos:  # generation_config.json names some, and is not among the policies' files
        fingerprint["end_tokens"] = sorted(job.text_tokenizer().ends)
    store.check_writable(config.run_uri, conditional=not config.single_writer)
    units = cut_units(files, config.unit_tokens, config.columns, config.max_row_bytes)
    return ScorePlan(job, units, fingerprint)
