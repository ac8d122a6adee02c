"""The chain of a job through Ray Data: units in, receipts out, a wave of units at a time.

    descriptors -> read and check (CPU tasks) -> score or decode (actors) -> create the object (CPU
    tasks)

Ray itself tries nothing twice that has to do with an actor: a unit whose process died would wait
for that actor's restart, for ever where its node is gone and no other has room.
"""

import gc
import logging
import math
import warnings
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from dlogp_ray.corpus.units import Unit
from dlogp_ray.pipelines.run.executor import Ended, Stages
from dlogp_ray.pipelines.run.job import Job
from dlogp_ray.pipelines.run.loading_watch import Loading, LoadingWatch
from dlogp_ray.pipelines.run.metrics import ActorMetrics, DriverMetrics
from dlogp_ray.pipelines.run.placement import IO_CPUS, Placement
from dlogp_ray.pipelines.run.row import Row

WAVE_UNITS = range(10_000, 100_000 + 1)
"""Units of one execution of Ray Data, which holds 12 KB of each in the driver until it ends..."""
WAVE_UNITS_PER_ACTOR = 100
"""... and at whose end actors stop and load anew: 1 % of the time, of units of 150 s."""
_PATIENCE_S = 1_800.0
"""Without a step, the least: Ray Data's own."""
_LONGEST_UNITS = 5
"""Times the longest unit: the speed that was measured is one actor's alone."""
_WATCH_S = 10.0
_GROWING_PATIENCE_S = 86_400.0
"""Where nodes come and go: spot nodes may all be away."""


class Chain:
    """Does the units of one job.

    Args:
        job: With what was measured and chosen for it.
        stages: What becomes of each unit.
        placement: Of the actors.
    """

    def __init__(self, job: Job, stages: Stages, placement: Placement) -> None:
        """No actor is there yet: each execution makes its own."""
        self._job, self._stages, self._placement = job, stages, placement
        self._watch = ray.remote(num_cpus=0)(LoadingWatch).remote()
        self._metrics = DriverMetrics(job.run_id)
        wanted = WAVE_UNITS_PER_ACTOR * placement.max_actors
        self.wave = min(max(WAVE_UNITS[0], wanted), WAVE_UNITS[-1])

    def waiting(self, units: int) -> None:
        """So many are left, for Prometheus."""
        self._metrics.waiting(units)

    def receipts(self, units: Sequence[Unit]) -> Generator[Row]:
        """One execution of Ray Data.

        Yields:
            A row for each unit whose processes lived: index, created, error, and what was done.

        Raises:
            Ended: Ray ended it before its end.
        """
        return _receipts(self._job, self._stages, self._placement, units, self._watch)


class PoolActor:
    """A job's actor in a process of Ray's: with metrics, and an end to loading that always dies.

    Args:
        stages: With the class of the actor.
        job: Its.
        placement: What it holds.
        watch: A ``LoadingWatch``.
    """

    def __init__(self, stages: Stages, job: Job, placement: Placement, watch: Any) -> None:
        """Load the policies.

        Raises:
            Refused: One can't be loaded, or the process has died at it before, as often as it may.
        """
        with Loading(watch, job.max_unit_attempts):
            assert stages.actor is not None
            self._actor = stages.actor(
                job, placement.device, placement.threads, spread=placement.gpus > 1
            )
        self._metrics = ActorMetrics(job.run_id)

    def __call__(self, row: Row) -> Row:
        """Do one unit, and count it."""
        before = row.get("error")
        done = self._actor(row)
        counts = done.pop("counts", None)
        if counts is not None:
            self._metrics.scored(**counts, seconds=done["seconds"])
        elif done["error"] and not before:
            self._metrics.failed()
        return done


def patience_s(job: Job, placement: Placement, units: Sequence[Unit]) -> float:
    """Seconds without a single step after which Ray Data is to end an execution.

    Well above what the longest of ``units`` takes at the slowest speed that was measured, and a
    day where all nodes may be gone for a while.
    """
    if placement.min_actors < placement.max_actors:
        return _GROWING_PATIENCE_S
    longest_s = max(unit.tokens for unit in units) / (job.speed or math.inf)
    return max(_PATIENCE_S, _LONGEST_UNITS * longest_s)


def _receipts(
    job: Job, stages: Stages, placement: Placement, units: Sequence[Unit], watch: Any
) -> Generator[Row]:
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

    receipts = _receipts_of(job, stages, placement, units, watch)
    # A lost unit is recorded with its cause. Ray Data logs its exception too, and a handler that
    # keeps that, as monitoring does, keeps the actor, with its CPUs.
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield from receipts.iter_rows()
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        raise Ended(
            _refusal(watch) or f"Ray ended the job: {type(error).__name__}: {error}"
        ) from None
    finally:
        logger.setLevel(level)
        # A cycle of Ray's exceptions keeps an actor that was restarted, with its CPUs: the next
        # execution of this process would wait for them.
        del receipts
        gc.collect()


def _receipts_of(
    job: Job, stages: Stages, placement: Placement, units: Sequence[Unit], watch: Any
) -> Any:
    """The stages as a dataset of Ray's: a row a unit, which nothing has run yet."""
    most = min(placement.max_actors, len(units))
    # A reader and a writer for each actor: each is a process, with imports of its own. Where there
    # are none, it is they who work.
    at_once = TaskPoolStrategy(size=most)
    io_cpus = IO_CPUS if stages.actor is not None else placement.cpus
    io = {"num_cpus": io_cpus, "compute": at_once, "fn_kwargs": {"job": job}}
    # Any: Ray annotates `map` for functions of one argument, not for classes or fn_kwargs.
    descriptors: Any = ray.data.from_items(
        [asdict(unit) for unit in units], override_num_blocks=len(units)
    )
    done = descriptors.map(stages.read, **io)
    if stages.actor is not None:
        done = done.map(
            PoolActor,
            fn_constructor_kwargs={
                "stages": stages,
                "job": job,
                "placement": placement,
                "watch": watch,
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
    return done.map(stages.write, **io)


def _refusal(watch: Any) -> str | None:
    """Why an actor could not load, in its own words."""
    with suppress(ray.exceptions.RayError):
        why: str | None = ray.get(watch.refusal.remote(), timeout=_WATCH_S)
        return why
    return None
