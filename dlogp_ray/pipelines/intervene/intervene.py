"""The intervene job: problems + two policies -> a committed table of graded answers, and its curve.

dlogp intervene job.yaml
ray job submit --working-dir . -- python jobs/intervene.py --config job.yaml
dlogp_ray.intervene(InterveneConfig.from_yaml("job.yaml"))
"""

from collections import Counter

from dlogp_ray.analysis.curve_files import write_curve
from dlogp_ray.config import InterveneConfig
from dlogp_ray.config.job import check_config
from dlogp_ray.events import say
from dlogp_ray.pipelines.intervene.plan import plan_intervene
from dlogp_ray.pipelines.intervene.preview import IntervenePreview
from dlogp_ray.pipelines.intervene.probe import as_calibrated
from dlogp_ray.pipelines.intervene.result import InterveneResult, summarise_answered
from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.run.clock import Clock
from dlogp_ray.pipelines.run.cost import begin
from dlogp_ray.pipelines.run.for_policies import ForPolicies
from dlogp_ray.pipelines.run.make_run import existing_run, make_run
from dlogp_ray.pipelines.run.stop import stop_on_sigterm
from dlogp_ray.tables.info import InterveneInfo


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
    check_config(config, InterveneConfig)
    where = ForPolicies(begin(config))
    with stop_on_sigterm() as stop:
        clock = Clock()
        plan = plan_intervene(config)
        made = make_run(plan, where=where, clock=clock, stop=stop, progress=progress)
        curve = write_curve(made.run) if made.run.sealed else []
        clock.lap("seal")
        result = summarise_answered(made, curve, clock, config.max_rejected)
        say("finished", **result.as_json())
        return result


def preview(config: InterveneConfig) -> IntervenePreview:
    """What the job would do, with thresholds calibrated and one actor's speed measured.

    A run that exists has both already.

    Raises:
        Refused: The job could not begin.
        FingerprintMismatch: The run exists and was made from something else.
    """
    where = ForPolicies(begin(config))
    plan = plan_intervene(config)
    run = existing_run(plan.job.run_uri, plan.fingerprint)
    job = plan.job if run is None else plan.recorded(run)
    with session.kept():
        executor = where.tried(job, plan.tokens, Counter())
        if run is None:
            calibrated = plan.calibrated(executor, run, progress=True)
        else:
            calibrated = as_calibrated(run.info_of(InterveneInfo))
        executor = where.done(executor, plan.tokens / calibrated.answers_per_s)
        placement = executor.place(job.config, calibrated.threads)
    return IntervenePreview(plan, placement, calibrated, len(run.committed()) if run else 0)
