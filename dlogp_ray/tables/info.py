"""The record of a run, ``run.json``, by the job that made it: what a reader may rely on.

What else stands there is kept.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from dlogp_ray.tables.noise import NoiseFloor

ENTRIES = "entries"
"""In a score run's fingerprint: how rows are made, where they are not the corpus's records."""
SCHEMA = "schema_version"
"""Of a fingerprint: the version of the schema that the job's rows have."""


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    def as_json(self) -> dict[str, Any]:
        """As it stands in ``run.json``."""
        return self.model_dump(mode="json", exclude_unset=True)


class RecordedPolicy(_Recorded):
    """Where a policy came from, as ``config.PolicySource``."""

    path: str | None = None
    adapter: str | None = None
    revision: str | None = None
    step: int | None = None


class RecordedEntry(_Recorded):
    """An entry of a corpus of which more is said than where it is, as ``config.CorpusEntry``."""

    path: str


class RecordedConfig(_Recorded):
    """The config of the job, of which this is what readers of the table look at."""

    corpus: tuple[str | RecordedEntry, ...] = ()
    problems: tuple[str, ...] = ()
    policies: dict[str, RecordedPolicy] = {}
    temperature: float = 1.0
    statistics: str = "all"
    pairs: bool = False
    single_writer: bool = False


class RecordedUnits(_Recorded):
    """The list of units.

    Attributes:
        count: How many.
        sha256: Of ``units.parquet``.
    """

    count: int
    sha256: str | None = None


class RunInfo(_Recorded):
    """What every run's record says.

    Attributes:
        job: That made it, a key of ``kinds.KINDS``.
        created: When, in UTC.
        config: Of the job.
        units: Its list.
        fingerprint: Everything that changes what comes out.
        versions: Of the packages that numbers come from, or tables.
        compared: Values of the column ``policy``: each has a row a sample.
        carry: Carried column -> its type, a key of ``scores.CARRY_TYPES``; of scores.
        records: What else the run begins with: name -> SHA-256.
        sha256: Of all else in the record; none before ``Kind.hashed_since``.
    """

    job: str
    created: str
    config: RecordedConfig
    units: RecordedUnits
    fingerprint: dict[str, Any]
    versions: dict[str, str]
    compared: tuple[str, ...]
    carry: dict[str, str] = {}
    records: dict[str, str] = {}
    sha256: str | None = None

    @property
    def schema_version(self) -> int:
        """Of the rows."""
        return int(self.fingerprint.get(SCHEMA, 0))


class RecordedEngine(_Recorded):
    """How a run scores, as ``scoring.engine.Engine``, or decodes.

    Attributes:
        dtype: Policy -> of its weights.
        threads: CPU threads of an actor.
    """

    dtype: dict[str, str]
    threads: int = 1


class PolicyRunInfo(RunInfo):
    """Of a job that loads policies.

    Attributes:
        engine: How its actors hold them.
    """

    engine: RecordedEngine


class ScoreInfo(PolicyRunInfo):
    """Of a score job.

    Attributes:
        noise: What the table shows where nothing has changed; None where nothing was sampled.
    """

    carry: dict[str, str]
    noise: NoiseFloor | None = None


class RecordedIntervention(_Recorded):
    """An intervention with its threshold, as ``pipelines`` has it."""

    label: str
    rule: str
    threshold: float | None = None
    rate: float | None = None
    primary: str = "base"
    gamma: float | None = None
    reached: float | None = None


class RecordedLeftOut(_Recorded):
    """An intervention that no threshold gives, and why."""

    label: str
    reason: str


class RecordedDecoding(RecordedEngine):
    """How a run decodes.

    Attributes:
        answers_per_s: Of one actor, without interventions.
    """

    answers_per_s: float


class InterveneInfo(PolicyRunInfo):
    """Of an intervene job.

    Attributes:
        interventions: In the table's order.
        left_out: Those that no threshold gives.
        calibration_tokens: That the thresholds come from, by the policy that drafts.
        special_tokens: Problems by what is special, as ``tables.special_tokens`` names it.
        engine: How it decodes.
    """

    interventions: tuple[RecordedIntervention, ...]
    left_out: tuple[RecordedLeftOut, ...]
    calibration_tokens: dict[str, int]
    special_tokens: dict[str, int] = {}
    engine: RecordedDecoding


class RecordedWhole(_Recorded):
    """What schemes need of all rows.

    Attributes:
        of: Which rows these are.
        threshold: The entropy from which ``entropy_top`` keeps a token.
        groups: Sums by group: what of -> the record that has them.
    """

    of: str = ""
    threshold: float | None = None
    groups: dict[str, str] = {}


class ReweightInfo(RunInfo):
    """Of a reweight job.

    Attributes:
        run: The scores run that the table was made from.
        policy: π_old.
        whole: What was found of all rows.
    """

    run: str
    policy: str
    whole: RecordedWhole
