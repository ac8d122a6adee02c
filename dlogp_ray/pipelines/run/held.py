"""How the process of an actor comes to hold the policies."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers.utils.logging import disable_progress_bar

from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.run.job import PolicyJob
from dlogp_ray.policies.adapters import load_policies
from dlogp_ray.policies.checkpoint import Checkpoint
from dlogp_ray.policies.loading import SPREAD
from dlogp_ray.policies.policy import Policy


def check_device(device: str) -> None:
    """Refuse a device that torch does not have."""
    if device == "cuda" and not torch.cuda.is_available():
        raise Refused(
            "Ray gave the actor a GPU, and torch sees none: install a torch build for it, or "
            "set gpus_per_actor: 0"
        )


@dataclass(frozen=True)
class Held:
    """Policies in memory, and the files that they are of.

    Attributes:
        policies: By name.
        checkpoints: The same.
        device: Where they are.
    """

    policies: dict[str, Policy]
    checkpoints: dict[str, Checkpoint]
    device: str

    def check_files(self) -> None:
        """Check that what is in memory is still what was loaded.

        Raises:
            InputChanged: A file that it is mapped from was overwritten.
        """
        if self.device == "cpu":
            for name, checkpoint in self.checkpoints.items():
                self.checkpoints[name] = checkpoint.check_in_place()


def hold_policies(
    job: PolicyJob,
    dtypes: Mapping[str, str],
    device: str,
    threads: int,
    *,
    spread: bool,
) -> Held:
    """Load all policies of a job.

    Args:
        job: Which.
        dtypes: Policy -> dtype of its weights.
        device: Where they are held, as torch names it.
        threads: CPU threads of tensor operations.
        spread: Whether each policy is spread over all GPUs that Ray gave to the process.

    Raises:
        Refused: One can't be loaded.
        InputChanged: Its files are not those that were hashed.
    """
    disable_progress_bar()
    torch.set_num_threads(threads)
    checkpoints = {name: job.checkpoint(name) for name in job.config.policies}
    seen = {name: checkpoint.seen_now() for name, checkpoint in checkpoints.items()}
    policies = load_policies(
        checkpoints,
        dtype=dtypes,
        device=device,
        device_map=SPREAD if spread else None,
    )
    return Held(policies, seen, device)
