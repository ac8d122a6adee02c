"""How a run is made, whatever the job: begin it or join it, do what is missing, seal it.

What is committed is what is there: a unit that has no object afterwards has failed, whatever the
receipts say.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic

import numpy as np

from dlogp_ray import store
from dlogp_ray.corpus.units import Units
from dlogp_ray.errors import StoreFailed, Unanswered
from dlogp_ray.events import say
from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.run.call_record import record_end, recorded
from dlogp_ray.pipelines.run.clock import Clock
from dlogp_ray.pipelines.run.executor import Executor, Where
from dlogp_ray.pipelines.run.failures import Failure, Failures
from dlogp_ray.pipelines.run.loop import Outcome, do_units
from dlogp_ray.pipelines.run.placement import Placement
from dlogp_ray.pipelines.run.plan import AnyJob, RunPlan
from dlogp_ray.pipelines.run.progress import counted
from dlogp_ray.pipelines.run.stop import StopRequest
from dlogp_ray.tables.calls import Call, deaths, read_calls
from dlogp_ray.tables.fingerprint import check_fingerprint
from dlogp_ray.tables.info import PolicyRunInfo
from dlogp_ray.tables.object_names import UNITS
from dlogp_ray.tables.run import Run, begin_run, find_run
from dlogp_ray.tables.sealing import seal

_GONE = "its object was there and is gone: it was deleted, or the run's folder moved"


@dataclass(frozen=True)
class Made:
    """A run after a call.

    Attributes:
        run: With what is there now.
        outcome: What came of the units of this call.
        failed: Units that this call could not do; earlier calls' are recorded.
    """

    run: Run
    outcome: Outcome
    failed: Mapping[str, Failure]


def make_run(
    plan: RunPlan[AnyJob], *, where: Where, clock: Clock, stop: StopRequest, progress: bool
) -> Made:
    """Do what is missing of a run.

    Args:
        plan: What a job is.
        where: Where its policies are tried, and its units done.
        clock: Of the call.
        stop: Asked between units.
        progress: Show progress on standard error.

    Raises:
        FingerprintMismatch: The run exists and was made from something else.
        Damaged: An object of the run is missing or can't be read; it is named.
        StoreFailed: The run's own records can't be read or written.
        Stopped: SIGTERM came; what is committed stays.
    """
    units = plan.units
    run = existing_run(plan.job.run_uri, plan.fingerprint)
    if run is not None and store.exists(run.path(UNITS)):
        units = plan.own_units(run)
    if run is not None and run.sealed:
        for name in run.hashes:
            run.beginning(name)
        run.objects()
        clock.lap("plan")
        return Made(run, Outcome(), {})
    missing = units if run is None else _missing(run, units, progress=progress)
    making, call = _Making(plan, where, clock, stop, progress), None
    if run is None or len(missing):
        run, call = making.do(run, units, missing)
    failed = making.settle(run, units, call)
    return Made(run, making.outcome, failed)


class _Making(Generic[AnyJob]):
    """One call's work on a run."""

    def __init__(
        self,
        plan: RunPlan[AnyJob],
        where: Where,
        clock: Clock,
        stop: StopRequest,
        progress: bool,
    ) -> None:
        self._plan, self._where, self._clock = plan, where, clock
        self._stop, self._progress = stop, progress
        self.outcome, self._failures = Outcome(), Failures(plan.job.run_uri)

    def do(self, run: Run | None, units: Units, missing: Units) -> tuple[Run, Call]:
        """Do what is missing of a run that is there or begins here.

        Args:
            run: That exists, if any.
            units: All of the run.
            missing: Those without an object.

        Returns:
            The run, and what is recorded of this call.
        """
        plan, clock, uri = self._plan, self._clock, self._plan.job.run_uri
        tokens, left = missing.tokens, len(missing)
        say("planned", run=uri, units=len(units), missing=left, tokens=tokens)
        died = Counter[str]()
        if run is not None:
            died = deaths(read_calls(run.uri), {unit.name for unit in missing})
        clock.lap("plan")
        with session.kept():
            executor = self._where.tried(plan.job, tokens, died)
            clock.lap("start")
            ready = plan.prepare(executor, missing, run, progress=self._progress)
            clock.lap(plan.preparing)
            if ready.noise_s:
                clock.move(ready.noise_s, plan.preparing, "noise floor")
            executor = self._where.done(executor, ready.seconds)
            clock.lap("start")
            placement = plan.place(executor, ready)
            with _store_failures(uri):
                run = begin_run(uri, ready.info, {UNITS: plan.encoded(units), **plan.records})
                self._do_units(run, missing, executor, placement)
        clock.lap(plan.doing)
        return run, executor.call

    def _do_units(self, run: Run, missing: Units, executor: Executor, placement: Placement) -> None:
        plan = self._plan
        job = replace(plan.recorded(run), origin=run.origin)
        if isinstance(run.info, PolicyRunInfo):
            # Another call may have begun it, with other threads: they round otherwise.
            placement = replace(placement, threads=run.info.engine.threads)
        _say_doing(run, placement, executor)
        before = run.planned - len(missing)
        with recorded(lambda: executor.call, run, self._clock, plan.doing, before, self._stop):
            do_units(
                job,
                plan.stages,
                executor,
                placement,
                missing,
                self._stop,
                self.outcome,
                failed=self._failures.add,
                bar=plan.progress(len(missing), missing.tokens, enabled=self._progress),
            )

    def settle(self, run: Run, units: Units, call: Call | None) -> Mapping[str, Failure]:
        """Seal the run where it is whole, or as whole as it gets and that is asked for.

        Args:
            run: That was worked on.
            units: All of it.
            call: What is recorded of this call, where it did anything.

        Returns:
            The units that this call could not do.
        """
        plan, outcome = self._plan, self.outcome
        with _store_failures(run.uri):
            plan.check_sources()
            run.check_there()
            committed = run.committed()
            failed = self._failures.settle(committed)
            if not outcome.ended:  # each was there, was tried, or has failed
                there = np.isin(units.index, committed.index)
                gone = (unit for unit in units.take(~there) if unit.name not in failed)
                failed |= {unit.name: Failure(unit, _GONE, 0) for unit in gone}
            # Units that Ray's end left untried have not failed.
            if len(committed) == run.planned or (plan.partial and not outcome.ended):
                seal(run, partial=plan.partial)
            self._clock.lap("seal")
            if call is not None:
                record_end(call, run.uri, self._clock, outcome.created)
        return failed


def existing_run(uri: str, fingerprint: Mapping[str, Any]) -> Run | None:
    """The run that is there, if any.

    Raises:
        FingerprintMismatch: It was made from something else.
    """
    run = find_run(uri)
    if run is not None:
        check_fingerprint(run, fingerprint)
    return run


def _say_doing(run: Run, placement: Placement, executor: Executor) -> None:
    engine = run.info.engine.as_json() if isinstance(run.info, PolicyRunInfo) else None
    say("scoring", engine=engine, placement=asdict(placement), on=executor.call.run_on)


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
