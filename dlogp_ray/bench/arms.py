"""What is measured, in one process: the engine, its parts, and the naive loops."""

import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dlogp_ray.bench.naive import naive_logp, naive_statistics
from dlogp_ray.bench.texts import make_groups, make_texts
from dlogp_ray.bench.whole import MATMUL_SIZE, MATMULS, WHOLE
from dlogp_ray.config import BenchConfig
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.packing import TOKEN_BUDGET, TokenSequence, token_budget_batches
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.split import Batching
from dlogp_ray.scoring.noise import measure_noise
from dlogp_ray.scoring.products import choose_dtype
from dlogp_ray.scoring.scorer import PairScorer
from dlogp_ray.scoring.statistics import chunk_rows

NOISE_TEXTS = 8


class Arms:
    """Policies in memory, and the arms by name.

    Args:
        config: The benchmark.
        device: As torch names it.
        part: Which of the config's processes this is.
    """

    def __init__(self, config: BenchConfig, device: str, part: int) -> None:
        """Load both policies; the first process also loads what the naive loops need."""
        torch.set_num_threads(config.threads)
        self._config, self._device = config, device
        sources = {"base": resolve("base", config.base), "rl": resolve("rl", config.rl)}
        self.dtypes = {
            name: choose_dtype(config.dtype, c.saved_dtype, device) for name, c in sources.items()
        }
        self.policies = {
            name: Policy.load(c, dtype=self.dtypes[name], device=device)
            for name, c in sources.items()
        }
        self.token_budget = config.token_budget or TOKEN_BUDGET[device]
        vocabulary = min(checkpoint.vocab_size for checkpoint in sources.values())
        self.texts = make_texts(config, vocabulary)
        self.groups = make_groups(config, vocabulary)
        # Dealt out by length, so that no process waits long for another.
        self._mine = sorted(self.texts, key=_fed)[part :: config.processes]
        # Whole groups: a prompt is shared within a process.
        self._my_groups = [
            text for i, text in enumerate(self.groups) if i // 8 % config.processes == part
        ]
        self.scorer = self._scorer()
        self._unshared = self._scorer(share_prompts=False)
        self._sampled = self._scorer(sampled_only=True)
        if config.compile == "on":
            self.scorer.compile()
            # The layers are compiled; the others only need to know.
            for scorer in (self._unshared, self._sampled):
                scorer.compile_statistics()
        self._targets = np.concatenate([text.response_ids for text in self._mine])
        self._states = self.scorer.hidden(self._mine)
        self._models: dict[str, Any] = {}
        if part == 0:
            self._models = {name: self._plain_model(c.folder, name) for name, c in sources.items()}
        # Name -> what it does with the first texts, so many of them; the heads' are all.
        self.arms: dict[str, Callable[[int | None], object]] = {
            "pair": lambda n: self.scorer.score(self._mine[:n]),
            "pair_sampled": lambda n: self._sampled.score(self._mine[:n]),
            "bodies": lambda n: self.scorer.hidden(self._mine[:n]),
            "bodies_and_bare_heads": self._bodies_and_bare_heads,
            "heads": lambda _n: self.scorer.statistics(self._states, self._targets),
            "groups_shared": lambda n: self.scorer.score(self._my_groups[:n]),
            "groups_unshared": lambda n: self._unshared.score(self._my_groups[:n]),
            "naive_logp_twice": lambda n: [
                naive_logp(model, self.texts[:n]) for model in self._models.values()
            ],
            "naive_statistics": lambda n: naive_statistics(
                self._models["base"], self._models["rl"], self.texts[:n]
            ),
            "matmul": lambda _n: self._matmul(),
        }

    def run(self, name: str, count: int | None) -> None:
        """Run one arm to its end.

        Args:
            name: Of the arm.
            count: Of the texts, so many of the first; None for all.
        """
        share = count
        if name in WHOLE:
            torch.set_num_threads(self._config.threads * self._config.processes)
        elif count is not None:
            share = -(-count // self._config.processes)
        try:
            self.arms[name](share)
            if self._device == "cuda":
                torch.cuda.synchronize()
        finally:
            torch.set_num_threads(self._config.threads)

    def facts(self) -> dict[str, Any]:
        """What can be said without a clock."""
        layers = sum(
            p.numel()
            for policy in self.policies.values()
            for name, p in policy.parameters()
            if p.dim() >= 2 and "embed" not in name and "lm_head" not in name
        )
        heads = sum(policy.lm_head.weight.numel() for policy in self.policies.values())
        predicted = sum(len(text.response_ids) for text in self.texts)
        fed = sum(map(_fed, self.texts))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self._device == "cuda":
            peak = torch.cuda.max_memory_allocated()
        return {
            "dtype": self.dtypes,
            "batching": {name: p.batching.name.lower() for name, p in self.policies.items()},
            "token_budget": self.token_budget,
            "vocabulary": {name: policy.lm_head.width for name, policy in self.policies.items()},
            "matmul_flops": 2 * layers * fed + 2 * heads * predicted,
            "padding_share": round(self._padding_share(), 4),
            "peak_memory_bytes": peak,
        }

    def noise(self) -> dict[str, Any]:
        """The noise floor over this process's texts."""
        return measure_noise(self.scorer, self._mine[:NOISE_TEXTS]).model_dump()

    def _scorer(self, **options: bool) -> PairScorer:
        return PairScorer(self.policies, base="base", token_budget=self.token_budget, **options)

    def _plain_model(self, folder: Any, name: str) -> Any:
        from transformers import AutoModelForCausalLM

        dtype = getattr(torch, self.dtypes[name])
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return model.eval().requires_grad_(False).to(self._device)

    def _bodies_and_bare_heads(self, count: int | None) -> None:
        heads = {name: policy.lm_head.weight.T for name, policy in self.policies.items()}
        widths = [weight.shape[1] for weight in heads.values()]
        rows = chunk_rows(widths, self._device, compiled=self._config.compile == "on")
        with torch.inference_mode():
            for name, states in self.scorer.hidden(self._mine[:count]).items():
                for part in torch.split(states, rows):
                    torch.mm(part, heads[name])

    def _matmul(self) -> None:
        dtype = getattr(torch, self.dtypes["base"])
        square = torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype, device=self._device)
        for _ in range(MATMULS[self._device]):
            torch.mm(square, square)

    def _padding_share(self) -> float:
        if min(policy.batching for policy in self.policies.values()) is Batching.PACKED:
            return 0.0
        lengths = [_fed(text) for text in self.texts]
        batches = token_budget_batches(lengths, self.token_budget)
        padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
        return 1 - sum(lengths) / padded


def _fed(text: TokenSequence) -> int:
    return len(text.prompt_ids) + len(text.response_ids) - 1
