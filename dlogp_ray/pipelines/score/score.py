"""The score job: corpus + policies -> a committed table of per-token statistics.

dlogp score job.yaml
ray job submit --working-dir . -- python jobs/score.py --config job.yaml
dlogp_ray.score(ScoreConfig.from_yaml("job.yaml"))
"""

from collections import Counter
from dataclasses import replace

from dlogp_ray.config import ScoreConfig
from dlogp_ray.config.job import check_config
from dlogp_ray.events import say
from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.run.clock import Clock
from dlogp_ray.pipelines.run.cost import begin
from dlogp_ray.pipelines.run.for_policies import ForPolicies
from dlogp_ray.pipelines.run.make_run import existing_run, make_run
from dlogp_ray.pipelines.run.stop import stop_on_sigterm
from dlogp_ray.pipelines.score.plan import plan_score
from dlogp_ray.pipelines.score.preview import ScorePreview
from dlogp_ray.pipelines.score.result import ScoreResult, summarise_run


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
    check_config(config, ScoreConfig)
    where = ForPolicies(begin(config))
    with stop_on_sigterm() as stop:
        clock = Clock()
        plan = plan_score(config)
        made = make_run(plan, where=where, clock=clock, stop=stop, progress=progress)
        result = summarise_run(made, clock, config.max_rejected)
        say("finished", **result.as_json())
        return result


def preview(config: ScoreConfig) -> ScorePreview:
    """What the job would do, with one actor's speed measured on made-up sequences.

    Raises:
        Refused: The job could not begin.
        FingerprintMismatch: The run exists and was made from something else.
    """
    where = ForPolicies(begin(config))
    plan = plan_score(config)
    run = existing_run(plan.job.run_uri, plan.fingerprint)
    with session.kept():
        executor = where.tried(plan.job, plan.tokens, Counter())
        seen = plan.probe(executor, plan.tokens, run, progress=True)
        executor = where.done(executor, plan.tokens / seen.tokens_per_s)
        placement = executor.place(config, seen.engine.threads)
    return ScorePreview(
        plan=plan,
        probe=replace(seen, placement=placement),
        noise=seen.noise if run is None else run.noise,
        units_done=len(run.committed()) if run else 0,
    )
