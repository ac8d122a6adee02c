"""The sparsity job: a scores table -> statistics of where RL changed the policy.

dlogp sparsity runs/my-run --by correct
ray job submit --working-dir . -- python jobs/sparsity.py runs/my-run
dlogp_ray.sparsity(SparsityConfig(run="runs/my-run", by="correct"))

It is made anew each time: what comes out follows from the run and the columns named, to the byte.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pyarrow as pa

from dlogp_ray import store
from dlogp_ray.amounts import amount
from dlogp_ray.analysis.sparsity.groups import Grouped
from dlogp_ray.analysis.sparsity.reading import read_object
from dlogp_ray.analysis.sparsity.report.report import report
from dlogp_ray.analysis.sparsity.tables import sparsity_tables, training_tables
from dlogp_ray.config import BASE, SparsityConfig
from dlogp_ray.config.job import check_config
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.run.clock import Clock
from dlogp_ray.pipelines.run.for_tables import added_up, be_there, tables_on
from dlogp_ray.pipelines.run.stop import stop_on_sigterm
from dlogp_ray.pipelines.sparsity.plan import check_sparsity
from dlogp_ray.pipelines.sparsity.result import REPORT, SparsityResult
from dlogp_ray.policies.checkpoint import local_folder
from dlogp_ray.policies.tokenizers import surfaces
from dlogp_ray.tables.derived import ANALYSIS, write_derived
from dlogp_ray.tables.run import Run, open_run


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
    check_config(config, SparsityConfig)
    with session.kept(), stop_on_sigterm():
        return _sparsity(config, progress)


def _sparsity(config: SparsityConfig, progress: bool) -> SparsityResult:
    clock = Clock(("start", "plan", "reading", "writing"))
    run = open_run(config.run)
    check_sparsity(run, config)
    folder = run.path(f"sparsity/{config.name}")
    store.check_writable(folder, conditional=False)
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
    if not whole.groups and not whole.alone:
        raise Refused(
            f"run {run.uri}: no row of it was scored; `dlogp show {run.uri}` says why, and "
            f'`dlogp query {run.uri} "SELECT status, error FROM rejected"` of each'
        )
    if not whole.groups:
        raise Refused(
            f"run {run.uri}: nothing in it is compared with a base policy "
            f"({amount(whole.rows, 'row')}, {whole.alone:,} of them of a policy by itself)"
        )
    surface = _surfaces(run)
    training = training_tables(whole, floors, surface)
    tables = sparsity_tables(whole, config.by, floors, surface) | training
    result = _counted(run, folder, whole, len(objects), tables)
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


def _counted(
    run: Run, folder: str, whole: Grouped, units_read: int, tables: Mapping[str, pa.Table]
) -> SparsityResult:
    """What was read and made; its time comes with the end."""
    floors = run.noise.floors if run.noise else {}
    return SparsityResult(
        run=run.uri,
        folder=folder,
        sealed=run.sealed,
        units=run.planned,
        units_read=units_read,
        groups=len(whole.groups),
        samples=sum(sums.samples for sums in whole.groups.values()),
        tokens=sum(sums.tokens for sums in whole.groups.values()),
        alone=whole.alone,
        unresolved_nats=floors.get("delta_logp"),
        noise_lacks=run.noise.lacks if run.noise else None,
        single=sorted(str(group) for group, sums in whole.groups.items() if sums.samples == 1),
        empty=[str(group) for group in whole.empty],
        tables={name: len(table) for name, table in tables.items()},
        seconds=0.0,
        spent={},
    )


def _footer(run: Run, result: SparsityResult) -> str:
    share = "" if run.sealed else f" (not sealed: {result.units_read} of {result.units} units)"
    return f"{run.uri}{share} · values to four digits"


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
