"""The stage of a unit that needs the policies: a plain class, loaded once, called once a unit."""

from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.loading import Loading
from dlogp_ray.pipelines.planning import ScoreJob
from dlogp_ray.pipelines.stages import Row, from_bytes, guarded, to_bytes
from dlogp_ray.policies.adapters import load_policies
from dlogp_ray.scoring.scorer import PairScorer
from dlogp_ray.scoring.unit import score_unit


class ScoreUnit:
    """Holds all policies; checked corpus rows -> score rows.

    Args:
        job: Which policies, and how.
        device: Where they are held, as torch names it.
        threads: CPU threads of tensor operations.
        watch: A ``LoadingWatch``, where Ray may restart the process.
    """

    def __init__(
        self, job: ScoreJob, device: str, threads: int = 1, watch: Any | None = None
    ) -> None:
        """Load the policies.

        Raises:
            Refused: One can't be loaded, torch has no such device, or the process has died at it
                before, as often as it may.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise Refused(
                "Ray gave the actor a GPU, and torch sees none: install a torch build for it, or "
                "set gpus_per_actor: 0"
            )
        disable_progress_bar()
        engine = job.engine or job.default_engine(device)
        torch.set_num_threads(threads)
        with Loading(watch, job.config.max_unit_attempts):
            self.policies = load_policies(
                {name: job.checkpoint(name) for name in job.config.policies},
                dtype=engine.dtype,
                device=device,
                trust_remote_code=job.config.trust_remote_code,
                allow_pickle=job.config.allow_pickle,
            )
        self.scorer = PairScorer(
            self.policies,
            base=job.base,
            token_budget=engine.token_budget,
            temperature=job.config.temperature,
            sampled_only=job.config.statistics == "sampled",
        )
        if engine.compiled:
            self.scorer.compile()
        self._job = job

    @property
    def policies_bytes(self) -> int:
        """Memory of all weights; what policies share counts once."""
        weights = (w for policy in self.policies.values() for _name, w in policy.parameters())
        return sum({w.data_ptr(): w.numel() * w.element_size() for w in weights}.values())

    def __call__(self, row: Row) -> Row:
        """Score one unit."""

        def work() -> Row:
            config = self._job.config
            scores = score_unit(
                from_bytes(row["payload"]),
                self.scorer,
                base=self._job.base,
                compared=config.compared,
                steps={name: config.policies[name].step for name in config.compared},
                carry=self._job.rules.carry,
            )
            return row | {"payload": to_bytes(scores)}

        return guarded("scoring", row, work)
