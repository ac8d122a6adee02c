"""Interventions inside of ``generate``, for users who stay in transformers.

    processor = ExtrapolationLogitsProcessor(rl_model, Intervention("delta_logp", -0.4, gamma=0.1))
    base_model.generate(**inputs, do_sample=True, top_k=0, logits_processor=[processor])

The same distribution as ``PairedDecoder`` (``mixture``), at the cost of two models a token. The
temperature and the filters are the processor's: leave those of ``generate`` off.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from dlogp_ray.decoding.distribution import Distribution, Sampling
from dlogp_ray.decoding.mixture import next_token_distribution
from dlogp_ray.decoding.rules import Intervention


class ExtrapolationLogitsProcessor(LogitsProcessor):
    """Lets a second model step in for the one that generates.

    Args:
        other: The model that does not generate, with the same vocabulary: the RL model where the
            intervention's primary policy is the base, and the reverse.
        intervention: Any, replacement and extrapolation alike.
        sampling: Temperature and filters of both draws.
        attention_mask: [b, prompt length] of the prompts where they are padded, on the left.
    """

    def __init__(
        self,
        other: Any,
        intervention: Intervention,
        sampling: Sampling | None = None,
        attention_mask: Tensor | None = None,
    ) -> None:
        """Nothing runs yet; one processor serves one call of ``generate`` after another."""
        self._other = other.eval()
        self._intervention = intervention
        self._sampling = sampling or Sampling()
        self._prompt_mask = attention_mask
        self._cache = DynamicCache()
        self._seen: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, input_ids: Any, scores: Any) -> Tensor:
        """[b, length] ids and [b, v] logits of the generating model -> [b, v] log-probabilities.

        Raises:
            ValueError: The models' vocabularies differ, or an extrapolation is not finite.
        """
        logits = self._other_logits(input_ids.to(self._other.device)).to(scores.device)
        if logits.shape != scores.shape:
            raise ValueError(
                f"expected two models of one vocabulary, got {scores.shape[-1]:,} and "
                f"{logits.shape[-1]:,} ids"
            )
        one, two = Distribution(scores.float()), Distribution(logits)
        base, rl = (one, two) if self._intervention.primary == "base" else (two, one)
        mixed = next_token_distribution(self._intervention, base, rl, self._sampling)
        return mixed.log().float()

    def _other_logits(self, ids: Tensor) -> Tensor:
        """The other model's logits after its own keys and values of what it has seen."""
        length = 0 if self._seen is None else self._seen.shape[1]
        goes_on = (
            self._seen is not None
            and ids.shape == (len(self._seen), length + 1)
            and torch.equal(ids[:, :length], self._seen)
        )
        if not goes_on:
            self._cache, length = DynamicCache(), 0
        mask = torch.ones_like(ids)
        if self._prompt_mask is not None:
            prompts = self._prompt_mask.to(ids.device)
            mask[:, : prompts.shape[1]] = prompts
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, length:]
        out = self._other(
            input_ids=ids[:, length:],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._seen = ids
        logits: Tensor = out.logits[:, -1].float()
        return logits
