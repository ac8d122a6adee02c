"""Where a job's work is done: in this process where that is sooner, else through Ray.

Who asks for Ray gets it: with a cluster that ``RAY_ADDRESS`` names, a submitted job, more actors
than one. Of all else, what is small is done here. A local Ray starts beside what comes before it.
"""

from collections import Counter

import torch

from dlogp_ray.config.job import RunOn
from dlogp_ray.errors import Refused
from dlogp_ray.events import say
from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.run.cost import ray_costs_s
from dlogp_ray.pipelines.run.executor import Executor, Where
from dlogp_ray.pipelines.run.here import Here, resources
from dlogp_ray.pipelines.run.job import PolicyJob
from dlogp_ray.pipelines.run.joined_ray import through_ray
from dlogp_ray.pipelines.run.machine import free_bytes
from dlogp_ray.scoring.engine import ACTOR_BYTES

_MOST_FLOPS = {"cpu": 4e12, "cuda": 2e15}
"""Products in a second that no one processor of today exceeds: what takes longer at that speed
takes longer in truth, and need not be loaded to know it."""
_ITEM_BYTES = {"float64": 8, "float32": 4}
"""Of a weight; else 2."""


class ForPolicies(Where):
    """Of a job whose workers hold policies.

    Args:
        settled: As ``cost.begin`` has it.
    """

    def __init__(self, settled: RunOn) -> None:
        """Nothing is chosen yet."""
        self._on = settled

    def tried(self, job: PolicyJob, amount: int, died: Counter[str]) -> Executor:
        """In this process too where Ray is one of this machine's own, which starts meanwhile."""
        lacks = _lacks(job)
        if self._on == "here":
            if lacks:
                raise Refused(f"run_on: here: {lacks}")
            return Here(died, alone=True)
        small = not lacks and least_seconds(job, amount) <= ray_costs_s()
        local = not session.was_there() and session.address() == "local"
        if self._on == "auto" and small and not died:
            return Here(died)
        if self._on == "auto":
            self._on = "ray"
            cause = lacks or ("a process died" if died else "it takes longer than Ray's start")
            say("through Ray", cause=cause)
            session.begin()
        # What a GPU's driver takes of its memory, a process keeps as long as it lives.
        if small and local and not died and not torch.cuda.is_available():
            return Here(died)
        return through_ray()

    def done(self, executor: Executor, seconds: float) -> Executor:
        """In this process where the units take less than Ray's start costs."""
        if isinstance(executor, Here):
            if self._on == "here" or (self._on == "auto" and seconds <= ray_costs_s()):
                return executor.alone()
            executor.release()
        return through_ray()


def least_seconds(job: PolicyJob, amount: int) -> float:
    """Less than what a job takes on any processor: of each token, every weight is a product."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return 2 * sum(_weights(job).values()) * amount / _MOST_FLOPS[device]


def _weights(job: PolicyJob) -> dict[str, float]:
    """Policy -> how many weights it has, about."""
    checkpoints = {name: job.checkpoint(name) for name in job.config.policies}
    return {
        name: checkpoint.weights_bytes / _ITEM_BYTES.get(checkpoint.saved_dtype, 2)
        for name, checkpoint in checkpoints.items()
    }


def _lacks(job: PolicyJob) -> str | None:
    """What this process lacks to do a job alone, and what to write instead."""
    config = job.config
    gpus = resources()["GPU"]
    each = config.gpus_per_actor if config.gpus_per_actor is not None else min(1.0, gpus)
    if each and config.actors is None and gpus // each > 1:
        return (
            f"this machine has GPUs for {int(gpus // each)} actors, and here there is one; write "
            "run_on: ray for all of them, or actors: 1 for one"
        )
    if each > gpus:
        return None  # which is refused as a Ray of this machine would
    device = "cuda" if each else "cpu"
    dtypes = job.dtypes(device)
    needed = sum(n * _ITEM_BYTES.get(dtypes[name], 2) for name, n in _weights(job).items())
    free = torch.cuda.mem_get_info()[0] if each else free_bytes()
    if needed + ACTOR_BYTES > free:
        return (
            f"the policies take {needed / 2**30:.1f} GiB in {', '.join(sorted({*dtypes.values()}))}"
            f" and their process {ACTOR_BYTES / 2**30:.0f} GiB beside, and "
            f"{free / 2**30:.1f} GiB are free; use a machine with more memory, fewer or smaller "
            "policies, or dtype: bfloat16"
        )
    return None
