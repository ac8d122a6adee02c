"""Where the actors of a job go, and what each one holds.

A request for resources that nobody has, or actors that hold every CPU, make Ray wait without a
word; so both are checked, and refused, before work begins.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dlogp_ray.amounts import amount
from dlogp_ray.config import RunConfig
from dlogp_ray.errors import Refused

IO_CPUS = 0.001
"""CPUs that a task that reads or writes a unit asks for: what an actor leaves of each of its own.

So that a node full of actors still has room for such tasks, also after another node was lost and
its actors came here: tasks that wait for CPUs which actors hold, and actors that wait for those
tasks, would wait for ever.
"""
_ACTOR_SHARE = 1 - IO_CPUS


@dataclass(frozen=True)
class Placement:
    """How many actors, and what each one holds.

    Attributes:
        min_actors: How many are wanted from the beginning.
        max_actors: How many there may come to be.
        cpus: Of each, as Ray counts them.
        gpus: Of each.
        threads: Of each one's tensor operations.
    """

    min_actors: int
    max_actors: int
    cpus: float
    gpus: float
    threads: int = 1

    @property
    def device(self) -> str:
        """Where an actor holds the policies, as torch names it."""
        return "cuda" if self.gpus else "cpu"

    def in_words(self) -> str:
        """How many actors, where, with how many threads, for people."""
        threads = f", {self.threads} threads each" if self.threads > 1 else ""
        least, most = self.min_actors, self.max_actors
        count = f"{most}" if least == most else f"{least} to {most}"
        return f"{count} on {self.device}{threads}"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        cpus: That it has.
        memory_bytes: That Ray gives to processes.
        actors: The most that the job has.
    """

    cpus: int
    memory_bytes: float
    actors: int = sys.maxsize

    def room(self, threads: int) -> int:
        """Actors of so many threads that are there at once."""
        return min(self.cpus // threads, self.actors)


def place_actors(
    config: RunConfig,
    resources: Mapping[str, float],
    threads: int | None = None,
    *,
    where: str = "cluster",
) -> Placement:
    """Where the scoring actors go in a cluster with these ``resources``.

    With GPUs: one actor a GPU, each with one CPU. Without: as many actors as there are CPUs for
    their threads, or as many threads as there are CPUs for the actors that the config names.
    Where the config gives a range of actors, the cluster may grow, and nobody can be asked by how
    much (no version of Ray reports it): the range is taken at its word.

    Args:
        config: The job.
        resources: Of the whole cluster as it is now.
        threads: CPU threads of an actor where the config does not name them; None to find them.
        where: What has them, for errors; a "machine" takes no nodes.

    Raises:
        Refused: The cluster can't hold them.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    wanted = config.actors
    grows = wanted is not None and wanted.min < wanted.max
    gpus_each = config.gpus_per_actor
    if gpus_each is None:
        gpus_each = 1.0 if gpus else 0.0
    if gpus_each:
        threads = config.threads_per_actor or 1
        room = int(gpus / gpus_each)
    else:
        shares = int(cpus / wanted.max) if wanted else 1
        threads = config.threads_per_actor or threads or max(1, shares)
        # An actor with more threads than its share of the CPUs is the config's own choice.
        room = int(cpus if wanted else max(1, cpus / threads))
    if wanted is not None and grows:
        cpus_each = _ACTOR_SHARE if gpus_each else threads * _ACTOR_SHARE
        return Placement(wanted.min, wanted.max, _rounded(cpus_each), gpus_each, threads)
    actors = wanted.max if wanted else max(1, room)
    asked = f"the job asks for {amount(actors, 'actor')} with {amount(gpus_each, 'GPU')} each"
    there = f"the {where} has {amount(cpus, 'CPU')} and {amount(gpus, 'GPU')}"
    if cpus <= 0:
        raise Refused(
            f"{asked} and CPUs to read and write, and {there}; where it adds nodes by itself, give "
            "a range: actors: {min: 1, max: 8} and gpus_per_actor: 1 (or 0)"
        )
    if not gpus_each and config.threads_per_actor and config.threads_per_actor > max(1, cpus):
        raise Refused(
            f"threads_per_actor: {threads}, and {there}: threads without a CPU only take each "
            "other's time; lower it, or leave it out"
        )
    if actors > room:
        hint = (
            "lower actors or gpus_per_actor" + (", or add nodes" if where == "cluster" else "")
            if gpus_each
            else "more actors than CPUs only take each other's time and memory: lower actors"
        )
        raise Refused(f"{asked}, and {there}; {hint}")
    cpus_each = min(float(threads), cpus / actors) * _ACTOR_SHARE
    return Placement(actors, actors, _rounded(cpus_each), gpus_each, threads)


def _rounded(cpus: float) -> float:
    """Down to what Ray counts in: rounding up could ask for more than there is."""
    return int(cpus * 10_000) / 10_000


def missing_now(placement: Placement, resources: Mapping[str, float]) -> str | None:
    """What one actor asks for and the cluster does not have now, for people."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if cpus >= placement.cpus and gpus >= placement.gpus:
        return None
    return (
        f"a node with {amount(placement.cpus, 'CPU')} and {amount(placement.gpus, 'GPU')}; the "
        f"cluster has {amount(cpus, 'CPU')} and {amount(gpus, 'GPU')}"
    )
