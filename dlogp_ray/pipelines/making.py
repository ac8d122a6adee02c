"""How a run is made, whatever the job: begin it or join it, do what is missing, seal it.

What is committed is what is there: a unit that has no object afterwards has failed, whatever the
receipts say.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from dlogp_ray import store
from dlogp_ray.corpus.units import Units, decode_units, encode_units
from dlogp_ray.errors import StoreFailed, Unanswered
from dlogp_ray.events import say
from dlogp_ray.pipelines import session
from dlogp_ray.pipelines.beginning import existing_run
from dlogp_ray.pipelines.clock import Clock
from dlogp_ray.pipelines.executor import Executor, Stages
from dlogp_ray.pipelines.failures import Failures
from dlogp_ray.pipelines.job import Job
from dlogp_ray.pipelines.loop import Outcome, do_units
from dlogp_ray.pipelines.progress import counted
from dlogp_ray.pipelines.recording import record_end, recorded
from dlogp_ray.pipelines.stopping import StopRequest
from dlogp_ray.pipelines.where import Where
from dlogp_ray.tables.calls import deaths, read_calls
from dlogp_ray.tables.info import PolicyRunInfo
from dlogp_ray.tables.run import Run, begin_run
from dlogp_ray.tables.sealing import seal

_GONE = "its object was there and is gone: it was deleted, or the run's folder moved"

AnyJob = TypeVar("AnyJob", bound=Job)


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
    info: PolicyRunInfo


@dataclass(frozen=True)
class Made:
    """A run after a call.

    Attributes:
        run: With what is there now.
        outcome: What came of the units of this call.
        failed: Units that this call could not do -> cause; earlier calls' are recorded.
    """

    run: Run
    outcome: Outcome
    failed: Mapping[str, str]


def make_run(
    job: AnyJob,
    units: Units,
    fingerprint: Mapping[str, Any],
    stages: Stages,
    prepare: Callable[[Executor, Units, Run | None], Ready],
    as_recorded: Callable[[AnyJob, Run], AnyJob],
    *,
    where: Where,
    clock: Clock,
    stop: StopRequest,
    records: Mapping[str, bytes] | None = None,
    progress: bool,
) -> Made:
    """Do what is missing of a run.

    Args:
        job: Before anything was measured for it.
        units: As they would be cut now; a run that exists has its own.
        fingerprint: Of everything that changes what comes out.
        stages: What becomes of each unit.
        prepare: Called with where the policies are tried, what is missing, and the run that exists:
            loads and measures.
        as_recorded: The job as the run's record has it: another call may have begun the run.
        where: Where that is done.
        clock: Of the call.
        stop: Asked between units.
        records: More objects that the run begins with: name -> content.
        progress: Show progress on standard error.

    Raises:
        FingerprintMismatch: The run exists and was made from something else.
        Damaged: An object of the run is missing or can't be read; it is named.
        StoreFailed: The run's own records can't be read or written.
        Stopped: SIGTERM came; what is committed stays.
    """
    run = existing_run(job.run_uri, fingerprint)
    if run is not None:
        units = _own_units(run, units)
    outcome, failures, failed = Outcome(), Failures(job.run_uri), dict[str, str]()
    if run is not None and run.sealed:
        for name in run.hashes:
            run.beginning(name)
        run.objects()
        clock.lap("plan")
        return Made(run, outcome, failed)
    missing = units if run is None else _missing(run, units, progress=progress)
    call = None
    if run is None or len(missing):
        tokens, left = missing.tokens, len(missing)
        say("planned", run=job.run_uri, units=len(units), missing=left, tokens=tokens)
        died = Counter[str]()
        if run is not None:
            died = deaths(read_calls(run.uri), {unit.name for unit in missing})
        clock.lap("plan")
        with session.kept():
            executor = where.tried(job, tokens, died)
            clock.lap("start")
            ready = prepare(executor, missing, run)
            clock.lap("probe")
            clock.move(ready.noise_s, "probe", "noise floor")
            executor = where.done(executor, ready.seconds)
            clock.lap("start")
            placement = executor.place(job.config, ready.threads)
            with _store_failures(job.run_uri):
                begun = {"units.parquet": encode_units(units), **(records or {})}
                run = begin_run(job.run_uri, ready.info, begun)
                job = replace(as_recorded(job, run), origin=run.origin)
                engine = run.info_of(PolicyRunInfo).engine
                # Another call may have begun it since, with other threads: they round otherwise.
                placement = replace(placement, threads=engine.threads)
                say(
                    "scoring",
                    engine=engine.model_dump(),
                    placement=asdict(placement),
                    on=executor.call.run_on,
                )
                before = run.planned - len(missing)
                with recorded(lambda: executor.call, run, clock, "units", before, stop):
                    do_units(
                        job,
                        stages,
                        executor,
                        placement,
                        missing,
                        stop,
                        outcome,
                        failed=failures.add,
                        progress=progress,
                    )
        call = executor.call
        clock.lap("units")
    with _store_failures(run.uri):
        run.check_there()
        committed = run.committed()
        failed = failures.settle(committed)
        if not outcome.ended:  # each was there, was tried, or has failed
            there = np.isin(units.index, committed.index)
            failed |= {u.name: _GONE for u in units.take(~there) if u.name not in failed}
        partial = job.config.seal_partial
        # Units that Ray's end left untried have not failed.
        if len(committed) == run.planned or (partial and not outcome.ended):
            seal(run, partial=partial)
        clock.lap("seal")
        if call is not None:
            record_end(call, run.uri, clock, outcome.created)
    return Made(run, outcome, failed)


@contextmanager
def _store_failures(uri: str) -> Iterator[None]:
    """What units are worth is waited for."""
    try:
        with store.patience():
            yield
    except (OSError, Unanswered) as error:
        raise StoreFailed(
            f"{uri}: {error}; what is committed stays, the same command goes on"
        ) from error


def _missing(run: Run, units: Units, *, progress: bool) -> Units:
    """The units without an object; what there is was made for this run.

    Raises:
        Damaged: An object is of another run or unit, or can't be read.
    """
    committed = run.committed()
    missing = units.take(~np.isin(units.index, committed.index))
    if len(missing):  # else that is seen when the run is sealed
        with counted("checking", len(committed), "objects", enabled=progress) as advance:
            for _footer in run.footers(committed):
                advance()
    return missing


def _own_units(run: Run, units: Units) -> Units:
    """The run's own list of units where it has one: another version may cut another way."""
    if not store.exists(run.path("units.parquet")):
        return units
    return decode_units(run.beginning("units.parquet")).seen_by(units)
