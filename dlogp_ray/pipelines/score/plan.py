"""What a score job will do, found out before Ray starts: files, checkpoints, units, fingerprint.

Everything that can be refused without loading weights is refused here, and nothing is written.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from dlogp_ray import store
from dlogp_ray.config import CorpusEntry, ScoreConfig
from dlogp_ray.config.run import MAX_ROW_BYTES
from dlogp_ray.corpus.carry import carry_types
from dlogp_ray.corpus.columns import check_columns
from dlogp_ray.corpus.cutting import cut_units
from dlogp_ray.corpus.rows import RowRules
from dlogp_ray.corpus.sources import list_sources
from dlogp_ray.corpus.units import Units
from dlogp_ray.pipelines.run.executor import Executor, Stages
from dlogp_ray.pipelines.run.plan import PolicyPlan, Ready
from dlogp_ray.pipelines.run.policies import (
    checked_checkpoints,
    known_files,
    policies_fingerprint,
    with_absolute_addresses,
)
from dlogp_ray.pipelines.run.record import common_info
from dlogp_ray.pipelines.score.actor import ScoreUnit
from dlogp_ray.pipelines.score.job import ScoreJob
from dlogp_ray.pipelines.score.probe import Probe, probe
from dlogp_ray.pipelines.score.sample import check_some_fit, sample_units
from dlogp_ray.pipelines.score.stages import read_unit, write_unit
from dlogp_ray.scoring.engine import Engine
from dlogp_ray.tables.info import ENTRIES, SCHEMA, RecordedEngine, ScoreInfo
from dlogp_ray.tables.kinds import SCORES
from dlogp_ray.tables.noise import NoiseFloor
from dlogp_ray.tables.run import Run, find_run


@dataclass(frozen=True)
class ScorePlan(PolicyPlan[ScoreJob]):
    """A checked score job."""

    stages: ClassVar[Stages] = Stages(read_unit, ScoreUnit, write_unit)

    @property
    def size_bytes(self) -> int:
        """Bytes of the corpus, as stored."""
        return self.units.size_bytes

    def probe(self, executor: Executor, tokens: int, run: Run | None, *, progress: bool) -> Probe:
        """Load and try the policies; a run that exists has its engine and its noise floor."""
        sample = sample_units(self.units) if run is None else []
        job = self.job if run is None else self.recorded(run)
        return probe(job, executor, tokens, sample, progress=progress)

    def prepare(
        self, executor: Executor, missing: Units, run: Run | None, *, progress: bool
    ) -> Ready:
        """Choose the engine, and measure the noise floor."""
        seen = self.probe(executor, missing.tokens, run, progress=progress)
        seconds = missing.tokens / seen.tokens_per_s
        return Ready(seen.engine.threads, seconds, seen.noise_s, self.info(seen))

    def info(self, seen: Probe) -> ScoreInfo:
        """What the run is made from, and how exact that is."""
        # What is unset is left out of a record.
        noise = seen.noise and NoiseFloor.model_validate(seen.noise.model_dump())
        said = common_info(self) | {"carry": dict(self.job.rules.carry)}
        return ScoreInfo(
            **said,
            compared=self.job.config.compared,
            engine=RecordedEngine(**asdict(seen.engine)),
            noise=noise,
        )

    def recorded(self, run: Run) -> ScoreJob:
        """With the engine that the run has."""
        return replace(self.job, engine=Engine(**run.info_of(ScoreInfo).engine.as_json()))


def _own(entry: CorpusEntry, config: ScoreConfig) -> bool:
    """Whether rows are made otherwise than by the job's ``columns`` and ``prompt_format`` alone."""
    plain = CorpusEntry(path=entry.path, columns=config.columns, prompt_format=config.prompt_format)
    return entry != plain


def plan_score(config: ScoreConfig) -> ScorePlan:
    """Check corpus, checkpoints and pair; cut the work units.

    Raises:
        Refused: Something is missing or does not fit.
    """
    config = with_absolute_addresses(config, "corpus")
    files, maps = list_sources(config.entries)
    check_columns(files, maps, pairs=config.pairs, max_row_bytes=config.max_row_bytes)
    checkpoints = checked_checkpoints(config, append_eos=config.append_eos)
    limits = [c.max_tokens for c in checkpoints.values() if c.max_tokens is not None]
    rules = RowRules(
        vocab_size=min(checkpoint.vocab_size for checkpoint in checkpoints.values()),
        max_tokens=min(limits, default=None),
        carry=carry_types(config.carry, files[0], maps[0], config.max_row_bytes),
    )
    fingerprint: dict[str, Any] = {
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
    job = ScoreJob(
        config.run_uri,
        config,
        rules,
        maps,
        known=known_files(checkpoints),
        conditional=not config.single_writer,
    )
    if any(_own(entry, config) for entry in config.entries):  # else each is as before there were
        fingerprint[ENTRIES] = [
            row_map.entry.model_dump(mode="json", exclude={"path"}) | {"root": row_map.root}
            for row_map in maps
        ]
        for file in files:
            fingerprint["corpus"][file.uri]["entry"] = file.source
    if config.pairs:
        fingerprint["pairs"] = True
    if config.max_row_bytes != MAX_ROW_BYTES:  # says which rows are rejected
        fingerprint["max_row_bytes"] = config.max_row_bytes
    if config.append_eos:  # generation_config.json names some, and is not among the policies' files
        fingerprint["end_tokens"] = sorted(job.text_tokenizer().ends)
    store.check_writable(config.run_uri, conditional=not config.single_writer)
    units = cut_units(files, config.unit_tokens, maps, config.max_row_bytes)
    if find_run(config.run_uri) is None:  # else what it says of its rows is there
        check_some_fit(job, units)
    return ScorePlan(job, units, fingerprint)
