"""The reweight job: a scores table -> a weights table that trainers read.

    dlogp reweight runs/my-run --scheme low_prob:alpha=0.2
    ray job submit --working-dir . -- python jobs/reweight.py runs/my-run --scheme low_prob
    dlogp_ray.reweight(ReweightConfig(run="runs/my-run", schemes="low_prob"))

The table is a run of its own in ``<run>/weights/<name>``, with an object for each of the scores
table, created once: the same command does what is missing. What schemes need of all rows is found
first, and stands in its record.
"""

from dlogp_ray.config import ReweightConfig
from dlogp_ray.config.job import check_config
from dlogp_ray.pipelines.reweight.plan import ReweightPlan, plan_reweight
from dlogp_ray.pipelines.reweight.result import ReweightResult, summarise_weights
from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.run.clock import Clock
from dlogp_ray.pipelines.run.for_tables import ForTables
from dlogp_ray.pipelines.run.make_run import make_run
from dlogp_ray.pipelines.run.stop import stop_on_sigterm


def reweight(config: ReweightConfig, *, progress: bool = True) -> ReweightResult:
    """Make the table, or what is missing of it.

    Args:
        config: The job.
        progress: Show progress on standard error.

    Raises:
        Refused: There is no such run or policy, it is not sealed, or a scheme needs a column that
            it does not have.
        FingerprintMismatch: The table exists and was made from something else.
        Damaged: An object can't be read; it is named.
        StoreFailed: The store does not take objects, or the run was moved meanwhile.
    """
    check_config(config, ReweightConfig)
    with session.kept(), stop_on_sigterm() as stop:
        clock = Clock(ReweightPlan.phases)
        plan = plan_reweight(config)
        where = ForTables(config.run_on, plan.tokens)
        made = make_run(plan, where=where, clock=clock, stop=stop, progress=progress)
        return summarise_weights(made, plan.job.weighing, clock)
