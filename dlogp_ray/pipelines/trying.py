"""One try in a process of its own, with an actor's resources, before any actor exists.

An actor whose constructor fails is restarted for ever; a task without retries fails at once, with
its reason.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import ray
from rich.console import Console

from dlogp_ray.config import RunConfig
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.cluster import Placement, missing_now, place_actors

T = TypeVar("T")


def place_now(config: RunConfig, threads: int | None, *, progress: bool) -> Placement:
    """Where actors go in the cluster as it is; says on standard error what is waited for.

    Args:
        config: The job.
        threads: Of an actor, where the run has that already.
        progress: Say it.

    Raises:
        Refused: The cluster can't hold the actors.
    """
    resources = ray.cluster_resources()
    placement = place_actors(config, resources, threads)
    if progress and (missing := missing_now(placement, resources)):
        Console(stderr=True).print(f"waiting for {missing}", highlight=False)
    return placement


def in_one_try(placement: Placement, work: Callable[..., T], *arguments: Any) -> T:
    """What ``work`` returns, from a task with the resources of one actor.

    Raises:
        Refused: It failed, or its process died.
    """
    remote = ray.remote(work).options(
        num_cpus=placement.cpus, num_gpus=placement.gpus, max_retries=0
    )
    try:
        found: T = ray.get(remote.remote(*arguments))
        return found
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Refused):
            raise Refused(str(cause)) from None
        raise Refused(f"the policies can't be tried: {type(cause).__name__}: {cause}") from error
    except ray.exceptions.RayError as error:
        raise Refused(
            "the process that loads the policies died, perhaps for want of memory "
            f"({type(error).__name__}: {error}); try fewer or smaller policies on one actor"
        ) from None
