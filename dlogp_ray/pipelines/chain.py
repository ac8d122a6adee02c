"""The chain of a job through Ray Data: units in, receipts out, a wave of units at a time.

    descriptors -> read and check (CPU tasks) -> score or decode (actors) -> create the object (CPU
    tasks)

Ray itself tries nothing twice that has to do with an actor: a unit whose process died would wait
for that actor's restart, for ever where its node is gone and no other has room. A unit that is
lost goes to the end of the queue instead, and another actor tries it.
"""

import gc
import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from dlogp_ray import store
from dlogp_ray.corpus.units import Unit, Units
from dlogp_ray.pipelines.cluster import IO_CPUS, Placement
from dlogp_ray.pipelines.events import say
from dlogp_ray.pipelines.failures import Failure
from dlogp_ray.pipelines.job import Job
from dlogp_ray.pipelines.loading import LoadingWatch
from dlogp_ray.pipelines.metrics import DriverMetrics
from dlogp_ray.pipelines.progress import UnitProgress
from dlogp_ray.pipelines.stopping import StopRequest

WAVE_UNITS = range(10_000, 100_000 + 1)
"""Units of one execution of Ray Data, which holds 12 KB of each in the driver until it ends..."""
WAVE_UNITS_PER_ACTOR = 100
"""... and at whose end actors stop and load anew: 1 % of the time, of units of 150 s."""
_PATIENCE_S = 1_800.0
"""Without a step, the least: Ray Data's own."""
_LONGEST_UNITS = 5
"""Times the longest unit: the speed that was measured is one actor's alone."""
_GROWING_PATIENCE_S = 86_400.0
"""Where nodes come and go: spot nodes may all be away."""


@dataclass(frozen=True)
class Stages:
    """What becomes of a unit; each takes a row and gives it on.

    Attributes:
        read: A function of (row, *, job): descriptor -> checked input.
        actor: A class that holds the policies; called with a row.
        write: A function of (row, *, job): creates the object, and gives a receipt.
        counts: What ``Unit.tokens`` counts.
    """

    read: Callable[..., dict[str, Any]]
    actor: type
    write: Callable[..., dict[str, Any]]
    counts: str = "tokens"


@dataclass
class Outcome:
    """What came of some units.

    Attributes:
        created: How many objects were created here.
        uncompiled: Units that were scored where ``torch.compile`` had given up on a function.
        ended: Why Ray ended the job before all were tried as often as they may; None if not.
    """

    created: int = 0
    uncompiled: int = 0
    ended: str | None = None


class _Ended(Exception):
    """Ray ended an execution."""


def do_units(
    job: Job,
    stages: Stages,
    placement: Placement,
    units: Units,
    stop: StopRequest,
    *,
    failed: Callable[[Failure], object],
    progress: bool,
) -> Outcome:
    """Do ``units``, each until it has an object or an error, or has died in every attempt.

    Args:
        job: With what was measured and chosen for it.
        stages: What becomes of each.
        placement: Of the actors.
        units: What is missing.
        stop: Asked after each unit.
        failed: Called with each that was tried as often as it may and has no object.
        progress: Show progress on standard error.

    Raises:
        Stopped: SIGTERM came.
        OSError: The store can't be asked what is there.
    """
    outcome = Outcome()
    watch = ray.remote(num_cpus=0)(LoadingWatch).remote()
    size = min(max(WAVE_UNITS[0], WAVE_UNITS_PER_ACTOR * placement.max_actors), WAVE_UNITS[-1])
    fresh, again, attempts = iter(units), list[Unit](), Counter[int]()
    metrics, left = DriverMetrics(job.config.run_id), len(units)
    metrics.waiting(left)
    with UnitProgress(len(units), units.tokens, stages.counts, enabled=progress) as bar:
        while True:
            wave = list(islice(fresh, size))
            if not wave:
                wave, again = again, []
            if not wave:
                return outcome
            under_way = {unit.index: unit for unit in wave}
            try:
                for receipt in _receipts(job, stages, placement, wave, watch):
                    unit = under_way.pop(int(receipt["index"]))
                    outcome.created += bool(receipt["created"])
                    outcome.uncompiled += bool(receipt["uncompiled"])
                    if receipt["error"]:
                        failed(Failure(unit, receipt["error"], attempts[unit.index] + 1))
                    left -= 1
                    metrics.waiting(left)
                    _say_done(unit, receipt)
                    bar.advance(unit.tokens)
                    stop.check()
            except _Ended as error:
                outcome.ended = str(error)
                say("ended by Ray", logging.ERROR, cause=outcome.ended)
                return outcome
            attempts.update(under_way.keys())
            lost = [u for u in under_way.values() if not store.exists(job.object_uri(u.index))]
            for unit in lost:
                tried = attempts[unit.index]
                say("unit lost", logging.WARNING, unit=unit.name, attempts=tried)
                if tried < job.config.max_unit_attempts:
                    again.append(unit)
                else:
                    cause = f"the process that did it died in each of {tried} attempts"
                    failed(Failure(unit, cause, tried))


def patience_s(job: Job, placement: Placement, units: Sequence[Unit]) -> float:
    """Seconds without a single step after which Ray Data is to end an execution.

    Well above what the longest of ``units`` takes at the slowest speed that was measured, and a
    day where all nodes may be gone for a while.
    """
    if placement.min_actors < placement.max_actors:
        return _GROWING_PATIENCE_S
    longest_s = max(unit.tokens for unit in units) / (job.speed or math.inf)
    return max(_PATIENCE_S, _LONGEST_UNITS * longest_s)


def _say_done(unit: Unit, receipt: dict[str, Any]) -> None:
    if receipt["error"]:
        say("unit failed", logging.ERROR, unit=unit.name, cause=receipt["error"])
        return
    names = ("created", "rows", "rejected", "tokens", "seconds", "uncompiled")
    say("unit done", unit=unit.name, **{name: receipt[name] for name in names})


def _receipts(
    job: Job, stages: Stages, placement: Placement, units: Sequence[Unit], watch: Any
) -> Iterator[dict[str, Any]]:
    """One execution of Ray Data.

    Yields:
        A row for each unit whose processes lived: index, created, error, and what was done.

    Raises:
        _Ended: Ray ended it before its end.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # A unit whose process dies loses its own block and no other.
    context.max_errored_blocks = -1
    context.execution_no_progress_timeout_s = patience_s(job, placement, units)
    # Of actors with one task at a time, all are busy at 1; Ray Data's default is above that.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 0.9
    # There is no other way yet to say how often an actor is restarted.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    # Of units that were lost before they came to a stage.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")

    most = min(placement.max_actors, len(units))
    # A reader and a writer for each actor: each is a process, with imports of its own.
    at_once = TaskPoolStrategy(size=most)
    io = {"num_cpus": IO_CPUS, "compute": at_once, "fn_kwargs": {"job": job}}
    # Any: Ray annotates `map` for functions of one argument, not for classes or fn_kwargs.
    descriptors: Any = ray.data.from_items(
        [asdict(unit) for unit in units], override_num_blocks=len(units)
    )
    receipts = (
        descriptors.map(stages.read, **io)
        .map(
            stages.actor,
            fn_constructor_kwargs={
                "job": job,
                "device": placement.device,
                "threads": placement.threads,
                "watch": watch,
                "spread": placement.gpus > 1,
            },
            compute=ActorPoolStrategy(
                min_size=min(placement.min_actors, most),
                max_size=most,
                max_tasks_in_flight_per_actor=1,
            ),
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            # A finite number fails the job with the first poison unit, and a pool that has used
            # them up is not refilled.
            max_restarts=-1,
            max_task_retries=0,
        )
        .map(stages.write, **io)
    )
    # A lost unit is recorded with its cause. Ray Data logs its exception too, and a handler that
    # keeps that, as monitoring does, keeps the actor, with its CPUs.
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield from receipts.iter_rows()
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        raise _Ended(f"Ray ended the job: {type(error).__name__}: {error}") from None
    finally:
        logger.setLevel(level)
        # A cycle of Ray's exceptions keeps an actor that was restarted, with its CPUs: the next
        # execution of this process would wait for them.
        del receipts
        gc.collect()
