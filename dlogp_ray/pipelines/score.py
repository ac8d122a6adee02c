"""The score job: corpus + policies -> a committed table of per-token statistics.

    dlogp score job.yaml
    ray job submit --working-dir . -- python jobs/score.py --config job.yaml
    dlogp_ray.score(ScoreConfig.from_yaml("job.yaml"))

What is committed is what is there: a unit that has no object afterwards has failed, whatever the
receipts say.
"""

import hashlib
import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import ray

from dlogp_ray import store
from dlogp_ray.config import ScoreConfig
from dlogp_ray.corpus.units import Units, decode_units, encode_units
from dlogp_ray.errors import StoreFailed
from dlogp_ray.pipelines.chain import Outcome, score_units
from dlogp_ray.pipelines.cluster import start_ray
from dlogp_ray.pipelines.events import say
from dlogp_ray.pipelines.failures import Failures
from dlogp_ray.pipelines.planning import ScorePlan, plan_score
from dlogp_ray.pipelines.probe import Probe, probe
from dlogp_ray.pipelines.result import ScorePreview, ScoreResult, summarise_run
from dlogp_ray.pipelines.sample import sample_units
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
    units = _fixed_units(run, plan)
    missing = units
    if run is not None:
        plan = replace(plan, job=replace(plan.job, engine=Engine(**run.info["engine"])))
        missing = units.take(~np.isin(units.index, run.committed().index))
    outcome, failures, failed = Outcome(), Failures(plan.job.run_uri), dict[str, str]()
    if run is not None and run.sealed:
        run.check_objects()
    else:
        if run is None or len(missing):
            with ray_session() as stop:
                # A run that exists has its noise floor.
                sample = sample_units(plan.units) if run is None else []
                tokens, left = missing.tokens, len(missing)
                say("planned", run=plan.job.run_uri, units=len(units), missing=left, tokens=tokens)
                seen = probe(plan.job, tokens, sample, progress=progress)
                info = _run_info(plan, seen)
                with _store_failures(plan.job.run_uri):
                    run = begin_run(plan.job.run_uri, info, encode_units(plan.units))
                    # As recorded: another call may have begun it meanwhile, with another engine.
                    job = replace(plan.job, engine=Engine(**run.info["engine"]))
                    say("scoring", engine=run.info["engine"], placement=asdict(seen.placement))
                    outcome = score_units(
                        job, seen.placement, missing, stop, failed=failures.add, progress=progress
                    )
        with _store_failures(run.uri):
            committed = run.committed()
            failed = failures.settle(committed)
            # Units that Ray's end left untried have not failed.
            if len(committed) == run.planned or (config.seal_partial and not outcome.ended):
                seal(run, partial=config.seal_partial)
    seconds = time.monotonic() - started
    result = summarise_run(run, outcome, failed, seconds, config.max_rejected)
    say("finished", **result.as_json())
    return result


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
        seen = probe(plan.job, plan.tokens, sample, progress=True)
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


def _fixed_units(run: Run | None, plan: ScorePlan) -> Units:
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
