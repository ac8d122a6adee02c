"""A job through Ray: its policies are tried in a task, its units done by a pool of actors.

An actor whose constructor fails is restarted for ever; a task without retries fails at once, with
its reason.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from rich.console import Console

from dlogp_ray import store
from dlogp_ray.config import RunConfig
from dlogp_ray.errors import DlogpError, Refused
from dlogp_ray.pipelines.run.chain import Chain
from dlogp_ray.pipelines.run.executor import Actor, Stages
from dlogp_ray.pipelines.run.job import Job
from dlogp_ray.pipelines.run.placement import Node, Placement, missing_now, place_actors
from dlogp_ray.pipelines.run.room import wait_for_room
from dlogp_ray.tables.calls import this_call
from dlogp_ray.tables.object_names import RECORD

T = TypeVar("T")


class ThroughRay:
    """Does a job's work in processes of the Ray that is there."""

    def __init__(self) -> None:
        """Nothing is asked of it yet."""
        self.call = this_call("ray")
        self._timeout_s: float | None = None

    def place(
        self, config: RunConfig, threads: int | None = None, *, progress: bool = False
    ) -> Placement:
        """In the cluster as it is."""
        resources = ray.cluster_resources()
        placement = place_actors(config, resources, threads)
        if progress and (missing := missing_now(placement, resources)):
            Console(stderr=True).print(f"waiting for {missing}", highlight=False)
        self._timeout_s = config.timeout_start
        return placement

    def everywhere(self) -> Placement:
        """On all CPUs of the cluster as it is."""
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        return Placement(workers, workers, cpus=1.0, gpus=0.0)

    def node(self) -> Node:
        """What every node that has CPUs has at least."""
        there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        with_cpus = [resources for resources in there if resources.get("CPU", 0) >= 1]
        return Node(
            cpus=int(min((r["CPU"] for r in with_cpus), default=1)),
            memory_bytes=min((r.get("memory", 0.0) for r in with_cpus), default=0.0),
        )

    def attempt(
        self, placement: Placement, work: Callable[..., tuple[T, Actor]], *arguments: Any
    ) -> T:
        """What ``work`` finds out, in a process of its own with an actor's resources."""
        wait_for_room(1, placement.cpus, placement.gpus, self._timeout_s)
        remote: Any = ray.remote(_found).options(
            num_cpus=placement.cpus, num_gpus=placement.gpus, max_retries=0
        )
        try:
            answer: T | DlogpError = ray.get(remote.remote(work, *arguments))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise Refused(
                f"the policies can't be tried: {type(cause).__name__}: {cause}"
            ) from error
        except ray.exceptions.RayError as error:
            raise Refused(
                "the process that loads the policies died, perhaps for want of memory "
                f"({type(error).__name__}: {error}); try fewer or smaller policies on one actor"
            ) from None
        if isinstance(answer, DlogpError):
            raise answer
        return answer

    @contextmanager
    def doing(self, job: Job, stages: Stages, placement: Placement) -> Iterator[Chain]:
        """By Ray Data."""
        if stages.actor is not None:
            count, cpus, gpus = placement.min_actors, placement.cpus, placement.gpus
            wait_for_room(count, cpus, gpus, self._timeout_s)
        with store.asked_now_and_then(f"{job.run_uri}/{RECORD}"):
            yield Chain(job, stages, placement)


def _found(work: Callable[..., tuple[T, Actor]], *arguments: Any) -> T | DlogpError:
    try:
        return work(*arguments)[0]
    except DlogpError as error:  # Ray would raise one of its own making
        return error
