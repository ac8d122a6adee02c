"""The score job: corpus + policies -> a committed table of per-token statistics.

    dlogp score job.yaml
    ray job submit --working-dir . -- python jobs/score.py --config job.yaml
    dlogp_ray.score(ScoreConfig.from_yaml("job.yaml"))

The chain is one unit a row, from descriptor to receipt:

    descriptors -> read and check (CPU tasks) -> score (actors) -> create the object (CPU tasks)

What is committed is what is there: a unit that has no object afterwards has failed, whatever the
receipts say.
"""

import gc
import hashlib
import importlib.metadata
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import ExecutionTimeoutError

from dlogp_ray import store
from dlogp_ray.config import ScoreConfig
from dlogp_ray.corpus.units import Unit, decode_units, encode_units
from dlogp_ray.errors import StoreFailed
from dlogp_ray.pipelines.actor import ScoreUnit
from dlogp_ray.pipelines.cluster import IO_CPUS, Placement, start_ray
from dlogp_ray.pipelines.loading import LoadingWatch
from dlogp_ray.pipelines.planning import ScoreJob, ScorePlan, plan_score
from dlogp_ray.pipelines.probe import Probe, probe
from dlogp_ray.pipelines.progress import UnitProgress
from dlogp_ray.pipelines.result import ScorePreview, ScoreResult, summarise_run
from dlogp_ray.pipelines.sample import sample_units
from dlogp_ray.pipelines.stages import read_unit, write_unit
from dlogp_ray.pipelines.stopping import StopRequest, stop_on_sigterm
from dlogp_ray.scoring.engine import Engine
from dlogp_ray.tables.run import Run, begin_run, check_fingerprint, find_run
from dlogp_ray.tables.sealing import seal

PACKAGES = ("dlogp_ray", "ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy")


def score(config: ScoreConfig, *, progress: bool = True) -> ScoreResult:
    """Run the job, or what is missing of it.

    Args:
        config: The job.
        progress: Show progress on standard error.

    Raises:
        Refused: The job can't begin; nothing was written.
        FingerprintMismatch: The run exists and was made from something else.
        Damaged: An object of the run is missing or can't be read; it is named.
        StoreFailed: The run's own records can't be read or written.
        Stopped: SIGTERM came; what is committed stays.
    """
    with stop_on_sigterm():
        return _score(config, progress)


def _score(config: ScoreConfig, progress: bool) -> ScoreResult:
    started = time.monotonic()
    plan = plan_score(config)
    run = _existing_run(plan)
    before = set(run.committed()) if run else set()
    if run is not None:
        plan = replace(plan, job=replace(plan.job, engine=Engine(**run.info["engine"])))
    missing = [unit for unit in _fixed_units(run, plan) if unit.name not in before]
    scored, failed = 0, dict[str, str]()
    if run is not None and run.sealed:
        run.check_objects()
    else:
        causes: dict[str, str] = {}
        if run is None or missing:
            with ray_session() as stop:
                # A run that exists has its noise floor.
                sample = sample_units(plan.units) if run is None else []
                tokens = sum(unit.tokens for unit in missing)
                seen = probe(plan.job, tokens, sample)
                info = _run_info(plan, seen)
                with _store_failures(plan.job.run_uri):
                    run = begin_run(plan.job.run_uri, info, encode_units(plan.units))
                # As recorded: another call may have begun the run meanwhile, with another engine.
                job = replace(plan.job, engine=Engine(**run.info["engine"]))
                scored, causes = _score_units(job, seen.placement, missing, stop, progress=progress)
        with _store_failures(run.uri):
            failed = _record_failures(run, missing, causes, config.max_unit_attempts)
            if len(run.committed()) == run.planned or config.seal_partial:
                seal(run, partial=config.seal_partial)
    seconds = time.monotonic() - started
    return summarise_run(run, scored, failed, seconds, config.max_rejected)


@contextmanager
def _store_failures(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreFailed(
            f"{uri}: {error}; what is committed stays, the same command goes on"
        ) from error


def preview(config: ScoreConfig) -> ScorePreview:
    """What the job would do, with one actor's speed measured on made-up sequences.

    Raises:
        Refused: The job could not begin.
        FingerprintMismatch: The run exists and was made from something else.
    """
    plan = plan_score(config)
    run = _existing_run(plan)
    with ray_session():
        sample = sample_units(plan.units) if run is None else []
        seen = probe(plan.job, plan.tokens, sample)
    return ScorePreview(
        plan=plan,
        probe=seen,
        noise=seen.noise if run is None else run.noise,
        units_done=len(run.committed()) if run else 0,
    )


def _existing_run(plan: ScorePlan) -> Run | None:
    run = find_run(plan.job.run_uri)
    if run is not None:
        check_fingerprint(run, plan.fingerprint)
    return run


def _fixed_units(run: Run | None, plan: ScorePlan) -> list[Unit]:
    """The run's own list of units where it has one: another version may cut another way."""
    if run is None or not store.exists(run.path("units.parquet")):
        return plan.units
    return decode_units(store.read(run.path("units.parquet")))


@contextmanager
def ray_session() -> Iterator[StopRequest]:
    """Ray for as long as the context lasts; a session that was there stays."""
    ours = start_ray()
    try:
        with stop_on_sigterm() as stop:  # again: starting Ray puts its own handler in place
            yield stop
    finally:
        if ours:
            ray.shutdown()


def _score_units(
    job: ScoreJob,
    placement: Placement,
    units: Sequence[Unit],
    stop: StopRequest,
    *,
    progress: bool,
) -> tuple[int, dict[str, str]]:
    """Score ``units``: how many objects this call created, and the cause of each reported error."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # A unit whose process dies loses its own block and no other.
    context.max_errored_blocks = -1
    # There is no other way yet to say how often an actor is restarted.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")

    # Any: Ray annotates `map` for functions of one argument, not for classes or fn_kwargs.
    descriptors: Any = ray.data.from_items(
        [asdict(unit) for unit in units], override_num_blocks=len(units)
    )
    receipts = (
        descriptors.map(read_unit, fn_kwargs={"job": job}, num_cpus=IO_CPUS)
        .map(
            ScoreUnit,
            fn_constructor_kwargs={
                "job": job,
                "device": placement.device,
                "threads": placement.threads,
                "watch": ray.remote(num_cpus=0)(LoadingWatch).remote(),
            },
            compute=ActorPoolStrategy(
                size=min(placement.actors, len(units)), max_tasks_in_flight_per_actor=1
            ),
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            # A finite number of restarts fails the job with the first poison unit, and a pool
            # that has used them up is not refilled: the attempts of a unit are counted instead.
            max_restarts=-1,
            max_task_retries=job.config.max_unit_attempts - 1,
        )
        .map(write_unit, fn_kwargs={"job": job}, num_cpus=IO_CPUS)
    )

    by_index = {unit.index: unit for unit in units}
    created, causes = 0, dict[str, str]()
    with UnitProgress(len(units), sum(u.tokens for u in units), enabled=progress) as bar:
        try:
            for receipt in receipts.iter_rows():
                unit = by_index[int(receipt["index"])]
                if receipt["error"]:
                    causes[unit.name] = receipt["error"]
                created += bool(receipt["created"])
                bar.advance(unit.tokens)
                stop.check()
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            # The whole stream ended; the units without an object carry the cause.
            cause = f"Ray ended the job: {type(error).__name__}: {error}"
            causes = {unit.name: cause for unit in units} | causes
        finally:
            # A cycle of Ray's exceptions keeps an actor that was restarted, with its CPUs: the next
            # job of this process would wait for them.
            del receipts
            gc.collect()
    return created, causes


def _record_failures(
    run: Run, tried: Sequence[Unit], causes: dict[str, str], attempts: int
) -> dict[str, str]:
    """Write ``failed/<unit>.json`` for units without an object; take back those of units done.

    Returns:
        Units without an object -> cause.
    """
    committed = run.committed()
    recorded = set(store.list_objects(run.path("failed")))
    failed = {}
    for unit in tried:
        uri = run.path(f"failed/{unit.name}.json")
        if unit.name not in committed:
            died = f"the process that scored it died in each of {attempts} attempts"
            record = {
                "cause": causes.get(unit.name, died),
                "attempts": 1 if unit.name in causes else attempts,
                "unit": asdict(unit),
            }
            failed[unit.name] = str(record["cause"])
            try:
                store.replace(uri, json.dumps(record, indent=2).encode())
            except OSError as error:  # a full disk for one: the causes are told all the same
                failed[unit.name] += f" (and that could not be recorded: {error})"
        elif f"{unit.name}.json" in recorded:
            store.delete(uri)
    return failed


def _run_info(plan: ScorePlan, seen: Probe) -> dict[str, Any]:
    """``run.json``: what the run is made from, and how exact that is."""
    return {
        "job": "score",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": plan.job.config.model_dump(mode="json"),
        "carry": dict(plan.job.rules.carry),
        "compared": plan.job.config.compared,
        "units": {
            "count": len(plan.units),
            "tokens": plan.tokens,
            "sha256": hashlib.sha256(encode_units(plan.units)).hexdigest(),
        },
        "fingerprint": plan.fingerprint,
        "engine": asdict(seen.engine),
        "noise": seen.noise and seen.noise.model_dump(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
