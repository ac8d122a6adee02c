"""The intervene job: problems + two policies -> a committed table of graded answers, and its curve.

dlogp intervene job.yaml
ray job submit --working-dir . -- python jobs/intervene.py --config job.yaml
dlogp_ray.intervene(InterveneConfig.from_yaml("job.yaml"))
"""

from collections import Counter
from dataclasses import replace

from rich.console import Console

from dlogp_ray.analysis.curve import write_curve
from dlogp_ray.config import InterveneConfig
from dlogp_ray.corpus.units import Units
from dlogp_ray.events import say
from dlogp_ray.pipelines import session
from dlogp_ray.pipelines.answering import AnswerUnit, read_problem_unit, write_answers
from dlogp_ray.pipelines.beginning import common_info, existing_run
from dlogp_ray.pipelines.calibrating import (
    Calibrated,
    as_calibrated,
    calibrate,
    interventions_of,
)
from dlogp_ray.pipelines.clock import Clock
from dlogp_ray.pipelines.cost import begin
from dlogp_ray.pipelines.executor import Executor, Stages
from dlogp_ray.pipelines.intervening import InterveneJob, IntervenePlan, plan_intervene
from dlogp_ray.pipelines.making import Ready, make_run
from dlogp_ray.pipelines.preview import IntervenePreview
from dlogp_ray.pipelines.result import InterveneResult, summarise_answered
from dlogp_ray.pipelines.stopping import stop_on_sigterm
from dlogp_ray.pipelines.where import Where
from dlogp_ray.tables.info import InterveneInfo, RecordedDecoding
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
    where = Where(begin(config))
    with stop_on_sigterm() as stop:
        clock = Clock()
        plan = plan_intervene(config)

        def prepare(executor: Executor, missing: Units, run: Run | None) -> Ready:
            job = plan.job if run is None else as_recorded(plan.job, run)
            return _prepare(plan, job, executor, missing, progress)

        made = make_run(
            plan.job,
            plan.units,
            plan.fingerprint,
            STAGES,
            prepare,
            as_recorded,
            where=where,
            clock=clock,
            stop=stop,
            records=plan.records,
            progress=progress,
        )
        curve = write_curve(made.run) if made.run.sealed else []
        clock.lap("seal")
        result = summarise_answered(made, curve, clock, config.max_rejected)
        say("finished", **result.as_json())
        return result


def as_recorded(job: InterveneJob, run: Run) -> InterveneJob:
    """The job with the thresholds and the engine that the run has."""
    info = run.info_of(InterveneInfo)
    return replace(
        job,
        interventions=interventions_of(info),
        dtype=info.engine.dtype,
        threads=info.engine.threads,
        answers_per_s=info.engine.answers_per_s,
    )


def preview(config: InterveneConfig) -> IntervenePreview:
    """What the job would do, with thresholds calibrated and one actor's speed measured.

    A run that exists has both already.

    Raises:
        Refused: The job could not begin.
        FingerprintMismatch: The run exists and was made from something else.
    """
    where = Where(begin(config))
    plan = plan_intervene(config)
    run = existing_run(plan.job.run_uri, plan.fingerprint)
    job = plan.job if run is None else as_recorded(plan.job, run)
    with session.kept():
        executor = where.tried(job, plan.units.tokens, Counter())
        found = (
            _try_out(plan, job, executor, progress=True)
            if run is None
            else as_calibrated(run.info_of(InterveneInfo))
        )
        seconds = plan.units.tokens / found.answers_per_s
        placement = where.done(executor, seconds).place(job.config, found.threads)
    return IntervenePreview(plan, placement, found, len(run.committed()) if run else 0)


def _try_out(
    plan: IntervenePlan, job: InterveneJob, executor: Executor, *, progress: bool
) -> Calibrated:
    threads = job.threads if job.dtype else None
    placement = executor.place(job.config, threads, progress=progress)
    if progress:
        some = min(job.config.calibration_problems, len(plan.problems))
        what = f"loading the policies, and answering {some:,} problems for thresholds and speed"
        Console(stderr=True).print(what, highlight=False)
    return executor.attempt(placement, calibrate, job, placement, plan.problems)


def _prepare(
    plan: IntervenePlan, job: InterveneJob, executor: Executor, missing: Units, progress: bool
) -> Ready:
    found = _try_out(plan, job, executor, progress=progress)
    info = InterveneInfo(
        **common_info(plan.job, plan.units, plan.fingerprint),
        **found.as_info(),
        special_tokens=plan.special_tokens,
        engine=RecordedDecoding(
            dtype=found.dtype, threads=found.threads, answers_per_s=found.answers_per_s
        ),
    )
    return Ready(found.threads, missing.tokens / found.answers_per_s, 0.0, info)
