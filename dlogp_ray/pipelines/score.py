"""The score job: corpus + policies -> a committed table of per-token statistics.

    dlogp score job.yaml
    ray job submit --working-dir . -- python jobs/score.py --config job.yaml
    dlogp_ray.score(ScoreConfig.from_yaml("job.yaml"))

What is committed is what is there: a unit that has no object afterwards has failed, whatever the
receipts say.
"""

from collections import Counter
from dataclasses import asdict, replace

from dlogp_ray.config import ScoreConfig
from dlogp_ray.corpus.units import Units
from dlogp_ray.events import say
from dlogp_ray.pipelines import session
from dlogp_ray.pipelines.actor import ScoreUnit
from dlogp_ray.pipelines.beginning import common_info, existing_run
from dlogp_ray.pipelines.clock import Clock
from dlogp_ray.pipelines.cost import begin
from dlogp_ray.pipelines.executor import Executor, Stages
from dlogp_ray.pipelines.making import Ready, make_run
from dlogp_ray.pipelines.planning import ScoreJob, ScorePlan, plan_score
from dlogp_ray.pipelines.preview import ScorePreview
from dlogp_ray.pipelines.probe import Probe, probe
from dlogp_ray.pipelines.result import ScoreResult, summarise_run
from dlogp_ray.pipelines.sample import sample_units
from dlogp_ray.pipelines.stages import read_unit, write_unit
from dlogp_ray.pipelines.stopping import StopRequest, stop_on_sigterm
from dlogp_ray.pipelines.where import Where
from dlogp_ray.scoring.engine import Engine
from dlogp_ray.tables.info import RecordedEngine, ScoreInfo
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
    where = Where(begin(config))
    with stop_on_sigterm() as stop:
        return _score(config, where, stop, progress)


def _score(config: ScoreConfig, where: Where, stop: StopRequest, progress: bool) -> ScoreResult:
    clock = Clock()
    plan = plan_score(config)

    def prepare(executor: Executor, missing: Units, run: Run | None) -> Ready:
        # A run that exists has its noise floor.
        sample = sample_units(plan.units) if run is None else []
        job = plan.job if run is None else as_recorded(plan.job, run)
        seen = probe(job, executor, missing.tokens, sample, progress=progress)
        seconds = missing.tokens / seen.tokens_per_s
        return Ready(seen.engine.threads, seconds, seen.noise_s, _run_info(plan, seen))

    done = make_run(
        plan.job,
        plan.units,
        plan.fingerprint,
        STAGES,
        prepare,
        as_recorded,
        where=where,
        clock=clock,
        stop=stop,
        progress=progress,
    )
    result = summarise_run(done, clock, config.max_rejected)
    say("finished", **result.as_json())
    return result


def as_recorded(job: ScoreJob, run: Run) -> ScoreJob:
    """The job with the engine that the run has."""
    return replace(job, engine=Engine(**run.info_of(ScoreInfo).engine.model_dump()))


def preview(config: ScoreConfig) -> ScorePreview:
    """What the job would do, with one actor's speed measured on made-up sequences.

    Raises:
        Refused: The job could not begin.
        FingerprintMismatch: The run exists and was made from something else.
    """
    where = Where(begin(config))
    plan = plan_score(config)
    run = existing_run(plan.job.run_uri, plan.fingerprint)
    with session.kept():
        sample = sample_units(plan.units) if run is None else []
        executor = where.tried(plan.job, plan.tokens, Counter())
        seen = probe(plan.job, executor, plan.tokens, sample, progress=True)
        executor = where.done(executor, plan.tokens / seen.tokens_per_s)
        placement = executor.place(config, seen.engine.threads)
    return ScorePreview(
        plan=plan,
        probe=replace(seen, placement=placement),
        noise=seen.noise if run is None else run.noise,
        units_done=len(run.committed()) if run else 0,
    )


def _run_info(plan: ScorePlan, seen: Probe) -> ScoreInfo:
    """What the run is made from, and how exact that is."""
    return ScoreInfo(
        **common_info(plan.job, plan.units, plan.fingerprint),
        carry=dict(plan.job.rules.carry),
        compared=plan.job.config.compared,
        engine=RecordedEngine(**asdict(seen.engine)),
        noise=seen.noise,
    )
