"""The score job: corpus + policies -> a committed table of per-token statistics.

    dlogp score job.yaml
    ray job submit --working-dir . -- python jobs/score.py --config job.yaml
    dlogp_ray.score(ScoreConfig.from_yaml("job.yaml"))

What is committed is what is there: a unit that has no object afterwards has failed, whatever the
receipts say.
"""

import time
from dataclasses import asdict, replace
from typing import Any

from dlogp_ray.config import ScoreConfig
from dlogp_ray.corpus.units import Units
from dlogp_ray.pipelines.actor import ScoreUnit
from dlogp_ray.pipelines.chain import Stages
from dlogp_ray.pipelines.events import say
from dlogp_ray.pipelines.making import Ready, common_info, existing_run, make_run, ray_session
from dlogp_ray.pipelines.planning import ScoreJob, ScorePlan, plan_score
from dlogp_ray.pipelines.preview import ScorePreview
from dlogp_ray.pipelines.probe import Probe, probe
from dlogp_ray.pipelines.result import ScoreResult, summarise_run
from dlogp_ray.pipelines.sample import sample_units
from dlogp_ray.pipelines.stages import read_unit, write_unit
from dlogp_ray.pipelines.stopping import stop_on_sigterm
from dlogp_ray.scoring.engine import Engine
from dlogp_ray.tables.run import Run

STAGES = Stages(read_unit, ScoreUnit, write_unit)


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

    def prepare(missing: Units, run: Run | None) -> Ready:
        # A run that exists has its noise floor.
        sample = sample_units(plan.units) if run is None else []
        job = plan.job if run is None else as_recorded(plan.job, run)
        seen = probe(job, missing.tokens, sample, progress=progress)
        return Ready(seen.placement, _run_info(plan, seen))

    done = make_run(
        plan.job, plan.units, plan.fingerprint, STAGES, prepare, as_recorded, progress=progress
    )
    seconds = time.monotonic() - started
    result = summarise_run(done, seconds, config.max_rejected)
    say("finished", **result.as_json())
    return result


def as_recorded(job: ScoreJob, run: Run) -> ScoreJob:
    """The job with the engine that the run has."""
    return replace(job, engine=Engine(**run.info["engine"]))


def preview(config: ScoreConfig) -> ScorePreview:
    """What the job would do, with one actor's speed measured on made-up sequences.

    Raises:
        Refused: The job could not begin.
        FingerprintMismatch: The run exists and was made from something else.
    """
    plan = plan_score(config)
    run = existing_run(plan.job.run_uri, plan.fingerprint)
    with ray_session():
        sample = sample_units(plan.units) if run is None else []
        seen = probe(plan.job, plan.tokens, sample, progress=True)
    return ScorePreview(
        plan=plan,
        probe=seen,
        noise=seen.noise if run is None else run.noise,
        units_done=len(run.committed()) if run else 0,
    )


def _run_info(plan: ScorePlan, seen: Probe) -> dict[str, Any]:
    """``run.json``: what the run is made from, and how exact that is."""
    return {
        **common_info("score", plan.job.config, plan.units, plan.fingerprint),
        "carry": dict(plan.job.rules.carry),
        "compared": plan.job.config.compared,
        "engine": asdict(seen.engine),
        "noise": seen.noise and seen.noise.model_dump(),
    }
