"""The sparsity job: a scores table -> statistics of where RL changed the policy.

dlogp sparsity runs/my-run --by correct
ray job submit --working-dir . -- python jobs/sparsity.py runs/my-run
dlogp_ray.sparsity(SparsityConfig(run="runs/my-run", by="correct"))

It is made anew each time: what comes out follows from the run and the columns named, to the byte.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
from rich.console import Console

from dlogp_ray import store
from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.analysis.sparsity.groups import SPLIT, Grouped
from dlogp_ray.analysis.sparsity.headlines import headlines
from dlogp_ray.analysis.sparsity.llama_cpp import llama_cpp_lines
from dlogp_ray.analysis.sparsity.reading import read_object
from dlogp_ray.analysis.sparsity.report.report import report
from dlogp_ray.analysis.sparsity.tables import names_of_tables, sparsity_tables, training_tables
from dlogp_ray.config import BASE, SparsityConfig
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines import session
from dlogp_ray.pipelines.clock import Clock
from dlogp_ray.pipelines.over_objects import added_up, be_there, tables_on
from dlogp_ray.pipelines.stopping import stop_on_sigterm
from dlogp_ray.policies.checkpoint import local_folder
from dlogp_ray.policies.tokenizers import surfaces
from dlogp_ray.tables.derived import ANALYSIS, write_derived
from dlogp_ray.tables.kinds import GENERATIONS
from dlogp_ray.tables.run import Run, open_run

REPORT = "report.html"
_ANYHOW = (*SPLIT, "step")
_NOT_SPLIT_BY = ("status", "error", "sample_id", *_ANYHOW)


@dataclass(frozen=True)
class SparsityResult:
    """The end of a sparsity job.

    Attributes:
        run: Address of the run.
        folder: Where the tables are.
        sealed: Whether the run is complete.
        units: Work units of the run.
        units_read: Those whose object was there.
        groups: Policies, generators and what else the tokens were split by.
        samples: Rows with statistics.
        tokens: Their tokens that count.
        alone: Rows of policies that are compared with none.
        unresolved_nats: |Δlog p| up to here is unresolved; None where no noise was measured.
        noise_lacks: What that leaves out, for people; None where it leaves out nothing.
        single: Groups with one sample, whose figures have no standard error.
        empty: Groups of whose rows none has a token that counts, and which have no figures.
        tables: Rows of each table.
        seconds: Wall-clock time of this call.
        spent: Of it, by what it went into.
    """

    run: str
    folder: str
    sealed: bool
    units: int
    units_read: int
    groups: int
    samples: int
    tokens: int
    alone: int
    unresolved_nats: float | None
    noise_lacks: str | None
    single: list[str]
    empty: list[str]
    tables: dict[str, int]
    seconds: float
    spent: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """All fields, for the last line of output."""
        return asdict(self)


def sparsity(config: SparsityConfig, *, progress: bool = True) -> SparsityResult:
    """Read the run once, and write its statistics beside it.

    Args:
        config: The job.
        progress: Show progress on standard error.

    Raises:
        Refused: There is no such run or column, it is not sealed, or nothing in it is compared.
        Damaged: An object is not the run's, or can't be read; it is named.
        StoreFailed: The run was moved or deleted meanwhile.
    """
    with session.kept(), stop_on_sigterm():
        return _sparsity(config, progress)


def _sparsity(config: SparsityConfig, progress: bool) -> SparsityResult:
    clock = Clock(("start", "plan", "reading", "writing"))
    run = open_run(config.run)
    _check(run, config)
    objects = run.objects()
    floors = run.noise.floors if run.noise else {}
    policies = max(1, len(run.info.config.policies) - 1)
    look = partial(read_object, by=config.by, floors=floors, policies=policies)
    tokens = run.seal["tokens"] if run.sealed else run.totals()["tokens"]
    where = tables_on(config.run_on, policies * tokens)
    clock.lap("plan")
    be_there(where)
    clock.lap("start")
    whole = added_up(objects, look, Grouped.merge, where, progress=progress)
    clock.lap("reading")
    if not whole.groups:
        raise Refused(
            f"run {run.uri}: nothing in it is compared with a base policy "
            f"({whole.rows:,} rows, {whole.alone:,} of them of a policy by itself)"
        )
    folder = run.path(f"sparsity/{config.name}")
    surface = _surfaces(run)
    training = training_tables(whole, floors, surface)
    tables = sparsity_tables(whole, config.by, floors, surface) | training
    result = SparsityResult(
        run=run.uri,
        folder=folder,
        sealed=run.sealed,
        units=run.planned,
        units_read=len(objects),
        groups=len(whole.groups),
        samples=sum(one.samples for one in whole.groups.values()),
        tokens=sum(one.tokens for one in whole.groups.values()),
        alone=whole.alone,
        unresolved_nats=floors.get("delta_logp"),
        noise_lacks=run.noise.lacks if run.noise else None,
        single=sorted(str(group) for group, one in whole.groups.items() if one.samples == 1),
        empty=[str(group) for group in whole.empty],
        tables={name: len(table) for name, table in tables.items()},
        seconds=0.0,
        spent={},
    )
    html = report(
        title=run.uri.rsplit("/", 1)[-1],
        noise=run.noise.in_words() if run.noise else "The run has no noise floor.",
        footer=_footer(run, result),
        figures=tables["figures"],
        by=config.by,
        tables=sparsity_tables(whole.overall(), (), floors, surface) | training,
        floors=floors,
        examples=whole.examples,
        surface=surface,
        most=config.responses,
    )
    store.replace(f"{folder}/{REPORT}", html.encode())
    clock.lap("writing")
    result = replace(result, seconds=clock.seconds, spent=clock.spent)
    said = {"config": config.model_dump(), "result": result.as_json()}
    said["fingerprint"] = run.info.fingerprint
    write_derived(run, folder, ANALYSIS, tables, said)
    run.check_there()
    return result


def print_sparsity(result: SparsityResult, console: Console, *, llama_cpp: bool = False) -> None:
    """Print the headline figures for people; on demand in the words of llama.cpp as well."""
    if not result.sealed:
        console.print(
            f"the run is not sealed: this covers {result.units_read} of {result.units} units"
        )
    config = json.loads(store.read(f"{result.folder}/{ANALYSIS}"))["config"]
    figures = open_run(result.run).figures(config["name"])
    print_whole(headlines(figures, config["by"]), console)
    if llama_cpp:
        console.print()
        for line in llama_cpp_lines(figures, config["by"]):
            console.print(line, highlight=False, soft_wrap=True)
    if result.unresolved_nats is None:
        console.print("the run has no noise floor: raised and lowered are all that is not 0")
    else:
        console.print(
            f"raised and lowered: by more than {_floor(result)}, the run's noise floor",
            soft_wrap=True,
        )
    for name in result.single:
        console.print(f"one sample, so no standard errors: {name}", soft_wrap=True)
    for name in result.empty:
        console.print(f"no token that counts, so no figures: {name}", soft_wrap=True)
    console.print(f"report and tables: {result.folder}/{REPORT}", soft_wrap=True)


def _footer(run: Run, result: SparsityResult) -> str:
    share = "" if run.sealed else f" (not sealed: {result.units_read} of {result.units} units)"
    return f"{run.uri}{share} · values to four digits"


def _floor(result: SparsityResult) -> str:
    lacks = f" ({result.noise_lacks})" if result.noise_lacks else ""
    return f"{result.unresolved_nats:.2g} nats{lacks}"


def _check(run: Run, config: SparsityConfig) -> None:
    """Refuse what can't be analysed, before anything is read.

    Raises:
        Refused: With what to do.
    """
    if run.kind is GENERATIONS:
        raise Refused(
            f"run {run.uri} is of an intervene job, whose statistics are in its curve; score its "
            "generations with `dlogp score` and analyse that run"
        )
    if not run.sealed and not config.partial:
        share = f"{len(run.committed())} of {run.planned} units"
        raise Refused(
            f"run {run.uri} is not sealed ({share} are there); end it with `dlogp score`, or "
            "analyse what is there with --partial"
        )
    scalars = [f.name for f in run.schema if not pa.types.is_nested(f.type)]
    possible = [name for name in scalars if name not in _NOT_SPLIT_BY]
    if anyhow := [name for name in config.by if name in _ANYHOW]:
        raise Refused(f"by: figures are split by {', '.join(anyhow)} anyhow; leave it out")
    unknown = [name for name in config.by if name not in possible]
    if unknown:
        raise Refused(
            f"run {run.uri}: figures can't be split by {', '.join(unknown)}: expected columns of "
            f"one value a response, got none so named among {', '.join(possible)}. (Metadata is "
            "there where the score job carried it)"
        )
    if taken := [name for name in config.by if name in names_of_tables()]:
        raise Refused(
            f"by: {', '.join(taken)} is the name of a column of the statistics themselves; carry "
            "it under another name"
        )


def _surfaces(run: Run) -> Callable[[int], str | None]:
    """How a vocabulary id looks, by the run's own tokenizer where that can be found."""
    policies = run.info.config.policies
    for name in (BASE, *policies):
        source = policies.get(name)
        if source is None or source.path is None:
            continue
        with suppress(Refused):  # the ids are there without it
            return surfaces(local_folder(name, source.path, source.revision))
    return lambda token: None
