"""The intervene job: problems + two policies -> a committed table of graded answers, and its curve.

dlogp intervene job.yaml
ray job submit --working-dir . -- python jobs/intervene.py --config job.yaml
dlogp_ray.intervene(InterveneConfig.from_yaml("job.yaml"))
"""

import time
from dataclasses import replace

from rich.console import Console

from dlogp_ray.analysis.curve import write_curve
from dlogp_ray.config import InterveneConfig
from dlogp_ray.corpus.units import Units
from dlogp_ray.pipelines.answering import AnswerUnit, read_problem_unit, write_answers
from dlogp_ray.pipelines.calibrating import (
    Calibrated,
    as_calibrated,
    calibrate,
    interventions_of,
)
from dlogp_ray.pipelines.chain import Stages
from dlogp_ray.pipelines.cluster import Placement
from dlogp_ray.pipelines.events import say
from dlogp_ray.pipelines.intervening import InterveneJob, IntervenePlan, plan_intervene
from dlogp_ray.pipelines.making import Ready, common_info, existing_run, make_run, ray_session
from dlogp_ray.pipelines.preview import IntervenePreview
from dlogp_ray.pipelines.result import InterveneResult, summarise_answered
from dlogp_ray.pipelines.stopping import stop_on_sigterm
from dlogp_ray.pipelines.trying import in_one_try, place_now
from dlogp_ray.tables.run import Run

STAGES = Stages(read_problem_unit, AnswerUnit, write_answers, counts="answers")


def intervene(config: InterveneConfig, *, progress: bool = True) -> InterveneResult:
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
        started = time.monotonic()
        plan = plan_intervene(config)

        def prepare(missing: Units, run: Run | None) -> Ready:
            job = plan.job if run is None else as_recorded(plan.job, run)
            return _prepare(plan, job, progress)

        made = make_run(
            plan.job,
            plan.units,
            plan.fingerprint,
            STAGES,
            prepare,
            as_recorded,
            records=plan.records,
            progress=progress,
        )
        curve = write_curve(made.run) if made.run.sealed else []
        seconds = time.monotonic() - started
        result = summarise_answered(made, curve, seconds, config.max_rejected)
        say("finished", **result.as_json())
        return result


def as_recorded(job: InterveneJob, run: Run) -> InterveneJob:
    """The job with the thresholds and the engine that the run has."""
    engine = run.info["engine"]
    return replace(
        job,
        interventions=interventions_of(run.info),
        dtype=engine["dtype"],
        threads=engine["threads"],
        answers_per_s=engine["answers_per_s"],
    )


def preview(config: InterveneConfig) -> IntervenePreview:
    """What the job would do, with thresholds calibrated and one actor's speed measured.

    A run that exists has both already.

    Raises:
        Refused: The job could not begin.
        FingerprintMismatch: The run exists and was made from something else.
    """
    plan = plan_intervene(config)
    run = existing_run(plan.job.run_uri, plan.fingerprint)
    with ray_session():
        if run is None:
            return IntervenePreview(plan, *_try_out(plan, plan.job, progress=True), 0)
        threads = run.info["engine"]["threads"]
        placement = place_now(plan.job.config, threads, progress=True)
        return IntervenePreview(plan, placement, as_calibrated(run.info), len(run.committed()))


def _try_out(
    plan: IntervenePlan, job: InterveneJob, *, progress: bool
) -> tuple[Placement, Calibrated]:
    placement = place_now(job.config, job.threads if job.dtype else None, progress=progress)
    if progress:
        some = min(job.config.calibration_problems, len(plan.problems))
        what = f"loading the policies, and answering {some:,} problems for thresholds and speed"
        Console(stderr=True).print(what, highlight=False)
    return placement, in_one_try(placement, calibrate, job, placement, plan.problems)


def _prepare(plan: IntervenePlan, job: InterveneJob, progress: bool) -> Ready:
    placement, found = _try_out(plan, job, progress=progress)
    info = {
        **common_info("intervene", plan.job.config, plan.units, plan.fingerprint),
        **found.as_info(),
        "special_tokens": plan.special_tokens,
        "engine": {
            "dtype": found.dtype,
            "threads": placement.threads,
            "answers_per_s": found.answers_per_s,
        },
    }
    return Ready(placement, info)
