"""Interventions inside of ``generate``, for users who stay in transformers.

    inputs = tok(prompts, padding=True, padding_side="left", return_tensors="pt")
    processor = ExtrapolationLogitsProcessor(
        rl_model, Intervention("delta_logp", -0.4, gamma=0.1), attention_mask=inputs.attention_mask
    )
    base_model.generate(**inputs, do_sample=True, top_k=0, logits_processor=[processor])

The same distribution as ``PairedDecoder`` (``mixture``), at the cost of two models a token. The
temperature and the filters are the processor's: leave those of ``generate`` off.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from dlogp_ray.decoding.distribution import Distribution, Sampling
from dlogp_ray.decoding.mixture import next_token_distribution
from dlogp_ray.decoding.padding import Padding
from dlogp_ray.decoding.rules import Intervention


class ExtrapolationLogitsProcessor(LogitsProcessor):
    """Lets a second model step in for the one that generates.

    Args:
        other: The model that does not generate, with the same vocabulary: the RL model where the
            intervention's primary policy is the base, and the reverse.
        intervention: Any, replacement and extrapolation alike.
        sampling: Temperature and filters of both draws.
        attention_mask: [b, p] of prompts that are padded, on the left. ``generate`` hands a
            processor ids alone: where prompts may be padded there has to be one, and the processor
            serves them alone.
    """

    def __init__(
        self,
        other: Any,
        intervention: Intervention,
        sampling: Sampling | None = None,
        attention_mask: Tensor | Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Nothing runs yet; one processor serves one call of ``generate`` after another."""
        self._other = other.eval()
        self._intervention = intervention
        self._sampling = sampling or Sampling()
        self._padding = Padding(other, attention_mask)
        self._cache: Any = DynamicCache()
        self._seen = self._mask = torch.empty(0, 0, dtype=torch.long)

    @torch.inference_mode()
    def __call__(self, input_ids: Any, scores: Any) -> Tensor:
        """[b, length] ids and [b, v] logits of the generating model -> [b, v] log-probabilities.

        Raises:
            ValueError: The models' vocabularies differ, an extrapolation is not finite, prompts may
                be padded and there is no mask, or it is not theirs.
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
        if self._goes_on(ids):
            length = ids.shape[1] - 1
            mask = torch.cat([self._mask, torch.ones_like(ids[:, :1])], 1)
        else:
            self._cache, length, mask = DynamicCache(), 0, self._padding.mask(ids)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, length:]
        out = self._other(
            input_ids=ids[:, length:],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._seen, self._mask = ids, mask
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _goes_on(self, ids: Tensor) -> bool:
        """Whether each row is one that was seen, and a token more.

        Beam search moves rows: what is kept of them moves too.
        """
        before, rows = ids[:, :-1], len(ids)
        if before.shape != self._seen.shape:
            return False
        if torch.equal(before, self._seen):
            return True
        which = torch.unique(torch.cat([self._seen, before]), dim=0, return_inverse=True)[1]
        place = torch.full_like(which, -1)
        place[which[:rows]] = torch.arange(rows, device=ids.device)
        origin = place[which[rows:]]
        if (origin < 0).any():
            return False
        self._cache.reorder_cache(origin)
        self._mask = self._mask[origin]
        return True
