"""What a reweight job will do: the objects of the scores that are weighed, and by what."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyarrow as pa

from dlogp_ray import store
from dlogp_ray.config import ReweightConfig
from dlogp_ray.corpus.units import Units
from dlogp_ray.pipelines.reweight.job import ReweightJob
from dlogp_ray.pipelines.reweight.stages import weigh_unit, write_weights
from dlogp_ray.pipelines.reweight.weighing import weighing_of
from dlogp_ray.pipelines.reweight.whole import OfAllRows, look_at_all
from dlogp_ray.pipelines.run.executor import Executor, Stages
from dlogp_ray.pipelines.run.placement import Placement
from dlogp_ray.pipelines.run.plan import Ready, RunPlan
from dlogp_ray.pipelines.run.progress import Advancing, CountedUnits
from dlogp_ray.pipelines.run.record import common_info
from dlogp_ray.tables.encoding import encode_table
from dlogp_ray.tables.info import SCHEMA, RecordedWhole, ReweightInfo
from dlogp_ray.tables.kinds import WEIGHTS
from dlogp_ray.tables.object_names import UNITS, unit_index
from dlogp_ray.tables.objects import TableObject
from dlogp_ray.tables.run import Run, open_run
from dlogp_ray.tables.source import source_hash


@dataclass(frozen=True)
class ReweightPlan(RunPlan[ReweightJob]):
    """A checked reweight job: a unit is an object of the scores.

    Attributes:
        asked: Its config.
        scores: The run whose rows are weighed.
        objects: Of it.
    """

    asked: ReweightConfig
    scores: Run
    objects: Sequence[TableObject]

    stages: ClassVar[Stages] = Stages(weigh_unit, None, write_weights)
    phases: ClassVar[tuple[str, ...]] = ("start", "plan", "reading", "weighing", "seal")
    preparing: ClassVar[str] = "reading"
    doing: ClassVar[str] = "weighing"

    @property
    def tokens(self) -> int:
        """Of the scores' responses."""
        return int(self.scores.seal["tokens"])

    @property
    def config(self) -> dict[str, Any]:
        """As it was asked for, with how the scores were written."""
        return self.asked.model_dump(mode="json") | {"single_writer": not self.job.conditional}

    def encoded(self, units: Units) -> bytes:
        """The scores' own list."""
        return self.scores.beginning(UNITS)

    def own_units(self, run: Run) -> Units:
        """Those of the scores."""
        return self.units

    def prepare(
        self, executor: Executor, missing: Units, run: Run | None, *, progress: bool
    ) -> Ready:
        """Find what schemes need of all rows; a table that has begun has it already."""
        if run is not None:
            return Ready(1, 0.0, 0.0, run.info)
        where = executor.call.run_on
        of_all = look_at_all(self.objects, self.job.weighing, where, progress=progress)
        return Ready(1, 0.0, 0.0, self._info(of_all))

    def _info(self, of_all: OfAllRows) -> ReweightInfo:
        """Its record, before which the sums by group are there.

        Of these scores and schemes, whoever writes them.
        """
        made_from = hashlib.sha256(json.dumps(self.fingerprint).encode()).hexdigest()[:12]
        groups, records = dict[str, str](), dict[str, str]()
        for name, sums in of_all.groups.items():
            groups[name] = f"{name}-{made_from}.parquet"
            data = encode_table(sums.table)
            uri = f"{self.job.run_uri}/{groups[name]}"
            store.create(uri, data, conditional=self.job.conditional)
            records[groups[name]] = hashlib.sha256(data).hexdigest()
        whole = RecordedWhole(of="all rows of the table", threshold=of_all.threshold, groups=groups)
        return ReweightInfo(
            **common_info(self),
            run=self.scores.uri,
            policy=self.job.weighing.policy,
            compared=(self.job.weighing.policy,),
            whole=whole,
            records=records,
        )

    def place(self, executor: Executor, ready: Ready) -> Placement:
        """On all CPUs."""
        return executor.everywhere()

    def recorded(self, run: Run) -> ReweightJob:
        """With the threshold that the table has."""
        return replace(self.job, threshold=run.info_of(ReweightInfo).whole.threshold)

    def check_sources(self) -> None:
        """The scores."""
        self.scores.check_there()

    def progress(
        self, units: int, tokens: int, *, enabled: bool
    ) -> AbstractContextManager[Advancing]:
        """A bar of objects."""
        return CountedUnits(self.doing, units, "objects", enabled=enabled)


def plan_reweight(config: ReweightConfig) -> ReweightPlan:
    """Check the scores, and that the schemes can be applied to them.

    Raises:
        Refused: There is no such run or policy, it is not sealed, or a scheme needs a column that
            it does not have.
        Damaged: An object of the scores is missing, or another one.
    """
    run = open_run(config.run)
    weighing = weighing_of(run, config)
    uri = run.path(f"weights/{config.table}")
    fingerprint = {
        SCHEMA: WEIGHTS.schema_version,
        "scores": source_hash(run),
        "schemes": [scheme.model_dump() for scheme in weighing.schemes],
        "policy": weighing.policy,
        "rl": weighing.rl,
        "mean_one": weighing.mean_one,
    }
    objects = run.objects()
    job = ReweightJob(uri, weighing, conditional=run.conditional)
    store.check_writable(uri, conditional=run.conditional)
    return ReweightPlan(job, _units(run, objects), fingerprint, config, run, objects)


def _units(run: Run, objects: Sequence[TableObject]) -> Units:
    """A unit for each object, with the version that it has."""
    listed = run.manifest().select(["unit", "tokens"])
    tokens = dict(zip(*(column.to_pylist() for column in listed.columns), strict=True))
    entries = [scored.entry for scored in objects]
    index = [unit_index(scored.unit) for scored in objects]
    n = len(objects)
    return Units(
        pa.table(
            {
                "index": pa.array(index, pa.int64()),
                "file": [scored.uri for scored in objects],
                "format": ["scores"] * n,
                "compression": pa.nulls(n, pa.string()),
                "start": [0] * n,
                "stop": [0] * n,
                "tokens": pa.array([tokens[scored.unit] for scored in objects], pa.int64()),
                "size_bytes": [entry.size for entry in entries],
                "file_bytes": [entry.size for entry in entries],
                "version": [entry.etag for entry in entries],
                "state": [entry.state for entry in entries],
            }
        )
    )
