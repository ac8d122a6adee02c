"""The executor of this process's Ray session; Ray is imported by who needs it."""

from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.run.executor import Executor


def through_ray() -> Executor:
    """Wait for the session.

    Raises:
        Refused: Ray does not start, or does not answer.
    """
    session.join()
    from dlogp_ray.pipelines.run.through_ray import ThroughRay

    return ThroughRay()
