"""The reweight job: a scores table -> a weights table that trainers read.

    dlogp reweight runs/my-run --scheme low_prob --alpha 0.2
    ray job submit --working-dir . -- python jobs/reweight.py runs/my-run --scheme low_prob
    dlogp_ray.reweight(ReweightConfig(run="runs/my-run", schemes="low_prob"))

The table is a run of its own in ``<run>/weights/<name>``, with an object for each of the scores
table, created once: the same command does what is missing. What schemes need of all rows is found
first, in one pass (two for an entropy quantile), and stands in its ``run.json``.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from dlogp_ray import store
from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.analysis.weights import schemes_line, weights_facts
from dlogp_ray.config import ReweightConfig
from dlogp_ray.config.schemes import EntropyTop
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines import session
from dlogp_ray.pipelines.beginning import existing_run, versions
from dlogp_ray.pipelines.clock import Clock
from dlogp_ray.pipelines.over_objects import added_up, be_there, tables_on
from dlogp_ray.pipelines.recording import record_end, recorded
from dlogp_ray.pipelines.reweighting import plan_reweight
from dlogp_ray.pipelines.stopping import StopRequest, stop_on_sigterm
from dlogp_ray.tables.calls import this_call
from dlogp_ray.tables.encoding import encode_table
from dlogp_ray.tables.info import SCHEMA, ReweightInfo
from dlogp_ray.tables.kinds import WEIGHTS
from dlogp_ray.tables.objects import TableObject, open_object
from dlogp_ray.tables.run import Run, begin_run, open_run
from dlogp_ray.tables.sealing import seal
from dlogp_ray.tables.source import source_hash
from dlogp_ray.tables.unit_names import unit_index
from dlogp_ray.tables.weights import WeightsSummary
from dlogp_ray.weights.applying import needs
from dlogp_ray.weights.rows import Rows, Weighing, WholeTable, first_pass, weigh_rows
from dlogp_ray.weights.whole import Counts, GroupSums, quantile, quantile_upper

_GROUPS = ("log_ppl", "reward")
"""Records of the table: sums by group, of which every worker needs some."""


@dataclass(frozen=True)
class ReweightResult:
    """The end of a reweight job.

    Attributes:
        table: Address of the weights table, as ``load_weights`` takes it.
        run: The scores run that it was made from.
        policy: π_old.
        schemes: With all parameters.
        units: Objects of the table.
        units_created: Those that this call has made.
        summary: Rows, a row a sample, and their weights.
        threshold: The entropy from which ``entropy_top`` keeps a token.
        seconds: Wall-clock time of this call.
        spent: Of it, by what it went into.
    """

    table: str
    run: str
    policy: str
    schemes: list[dict[str, Any]]
    units: int
    units_created: int
    summary: WeightsSummary
    threshold: float | None
    seconds: float
    spent: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """All fields, for the last line of output."""
        fields: dict[str, Any] = asdict(self)
        del fields["summary"]
        counts = self.summary.model_dump()
        return fields | counts | {"rows": self.summary.rows, "mean": self.summary.mean}


def reweight(config: ReweightConfig, *, progress: bool = True) -> ReweightResult:
    """Make the table, or what is missing of it.

    Args:
        config: The job.
        progress: Show progress on standard error.

    Raises:
        Refused: There is no such run or policy, it is not sealed, or a scheme needs a column that
            it does not have.
        FingerprintMismatch: The table exists and was made from something else.
        Damaged: An object can't be read; it is named.
    """
    with session.kept(), stop_on_sigterm() as stop:
        return _reweight(config, stop, progress)


def _reweight(config: ReweightConfig, stop: StopRequest, progress: bool) -> ReweightResult:
    clock = Clock(("start", "plan", "reading", "weighing", "seal"))
    run = open_run(config.run)
    weighing = plan_reweight(run, config)
    uri = run.path(f"weights/{config.table}")
    fingerprint = {
        SCHEMA: WEIGHTS.schema_version,
        "scores": source_hash(run),
        "schemes": [one.model_dump() for one in weighing.schemes],
        "policy": weighing.policy,
        "rl": weighing.rl,
        "mean_one": weighing.mean_one,
    }
    table = existing_run(uri, fingerprint)
    objects = run.objects()
    missing = objects
    if table is not None:
        there = {one.unit for one in table.objects()}
        missing = [one for one in objects if one.unit not in there]
    store.check_writable(uri, conditional=run.conditional)
    created = 0
    clock.lap("plan")
    call = None
    if table is None or missing:
        where = tables_on(config.run_on, run.seal["tokens"])
        call = this_call(where)
        be_there(where)
        clock.lap("start")
        if table is None:
            table = _begun(
                run, objects, uri, weighing, config, fingerprint, where, progress=progress
            )
        else:  # the call that began it may have ended before it wrote the list of units
            units_list = {"units.parquet": run.beginning("units.parquet")}
            table = begin_run(uri, table.info, units_list)
        clock.lap("reading")
        whole = table.info_of(ReweightInfo).whole
        make = partial(_make_object, table=table.uri, weighing=weighing, threshold=whole.threshold)
        before = len(objects) - len(missing)
        with recorded(lambda: call, table, clock, "weighing", before, stop):
            created = added_up(missing, make, _total, where, what="weighing", progress=progress)
        clock.lap("weighing")
    run.check_there()
    table.check_there()
    if not table.sealed:
        seal(table)
    clock.lap("seal")
    if call is not None:
        record_end(call, table.uri, clock, created)
    return _result(table, weighing, created, clock)


def print_reweight(result: ReweightResult, console: Console) -> None:
    """What came out, for people."""
    console.print(f"{schemes_line(result.schemes)}; π_old is {result.policy}", soft_wrap=True)
    if result.threshold is not None:
        console.print(f"entropy from {result.threshold:.4g} nats on: of all tokens of the table")
    print_whole(weights_facts(result.summary), console)
    console.print(f"weights table: {result.table}", soft_wrap=True)


def _make_object(
    one: TableObject, *, table: str, weighing: Weighing, threshold: float | None
) -> int:
    """Weigh one object of the scores; 1 where its object was created, 0 where it exists."""
    rows = _rows_of(one, weighing)
    found, summary = weigh_rows(rows, weighing, _whole_table(table, threshold))
    folder, index = open_run(table).folder, unit_index(one.unit)
    assert index is not None
    return int(folder.commit(index, found, rows_in=len(found), summary=summary))


def _rows_of(one: TableObject, weighing: Weighing) -> Rows:
    with open_object(one) as file:
        table = file.read(columns=weighing.read)
    try:
        return Rows.of(table, weighing)
    except Refused as error:
        raise Refused(f"{one.uri}: {error}") from None


@lru_cache(maxsize=2)
def _whole_table(table: str, threshold: float | None) -> WholeTable:
    run = open_run(table)
    found = {
        name: GroupSums(pq.read_table(pa.BufferReader(run.beginning(file))))
        for name, file in run.info_of(ReweightInfo).whole.groups.items()
    }
    return WholeTable(threshold=threshold, **found)


@dataclass(frozen=True)
class _First:
    counts: Counts
    log_ppl: GroupSums
    reward: GroupSums

    @classmethod
    def merge(cls, parts: Iterable[Self]) -> Self:
        some = list(parts)
        return cls(
            Counts.merge([one.counts for one in some]),
            GroupSums.merge(one.log_ppl for one in some),
            GroupSums.merge(one.reward for one in some),
        )


def _first_look(one: TableObject, *, weighing: Weighing) -> _First:
    return _First(*first_pass(_rows_of(one, weighing), weighing))


def _second_look(one: TableObject, *, weighing: Weighing, upper: int) -> Counts:
    return Counts.of(_rows_of(one, weighing).entropies(), upper)


def _total(created: Sequence[int]) -> int:
    return sum(created)


def _added(parts: Sequence[Counts]) -> Counts:
    return Counts.merge(parts)


def _begun(
    run: Run,
    objects: Sequence[TableObject],
    uri: str,
    weighing: Weighing,
    config: ReweightConfig,
    fingerprint: Mapping[str, Any],
    where: Literal["here", "ray"],
    *,
    progress: bool,
) -> Run:
    """Find what is needed of all rows, and create the table's record with it."""
    threshold, groups, records = None, dict[str, str](), dict[str, str]()
    wanted = {need for one in weighing.schemes for need in needs(one)}
    top = next((one for one in weighing.schemes if isinstance(one, EntropyTop)), None)
    if top or wanted & {"groups", "advantages"}:
        look = partial(_first_look, weighing=weighing)
        first = added_up(objects, look, _First.merge, where, progress=progress)
        if top:
            threshold = _threshold(objects, weighing, top, first.counts, where, progress=progress)
        # Before run.json, which says that they are there; of these scores and schemes, whoever
        # writes them.
        made_from = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()[:12]
        for name, need in zip(_GROUPS, ("groups", "advantages"), strict=True):
            if need in wanted:
                groups[name] = f"{name}-{made_from}.parquet"
                data = encode_table(getattr(first, name).table)
                store.create(f"{uri}/{groups[name]}", data, conditional=run.conditional)
                records[groups[name]] = hashlib.sha256(data).hexdigest()
    units = run.beginning("units.parquet")
    info = ReweightInfo.model_validate(
        {
            "job": WEIGHTS.job,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": config.model_dump(mode="json") | {"single_writer": not run.conditional},
            "run": run.uri,
            "policy": weighing.policy,
            "compared": [weighing.policy],
            "units": {
                "count": len(objects),
                "tokens": run.seal["tokens"],
                "sha256": hashlib.sha256(units).hexdigest(),
            },
            "whole": {"of": "all rows of the table", "threshold": threshold, "groups": groups},
            "records": records,
            "fingerprint": fingerprint,
            "versions": versions(),
        }
    )
    return begin_run(uri, info, {"units.parquet": units})


def _threshold(
    objects: Sequence[TableObject],
    weighing: Weighing,
    scheme: EntropyTop,
    counts: Counts,
    where: Literal["here", "ray"],
    *,
    progress: bool,
) -> float:
    if not len(counts):
        return 0.0
    upper, rank = quantile_upper(counts, scheme.rho)
    look = partial(_second_look, weighing=weighing, upper=upper)
    return quantile(upper, added_up(objects, look, _added, where, progress=progress), rank)


def _result(table: Run, weighing: Weighing, created: int, clock: Clock) -> ReweightResult:
    footers = table.footers(table.entries())
    summary = WeightsSummary.merge(
        WeightsSummary.model_validate(footer.said.summary) for _, footer in footers
    )
    info = table.info_of(ReweightInfo)
    return ReweightResult(
        table=table.uri,
        run=info.run,
        policy=weighing.policy,
        schemes=[one.model_dump() for one in weighing.schemes],
        units=table.planned,
        units_created=created,
        summary=summary,
        threshold=info.whole.threshold,
        seconds=clock.seconds,
        spent=clock.spent,
    )
