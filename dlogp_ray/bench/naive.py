"""What one would write without this project: the loops that the engine is measured against.

Texts in the order in which they come, eight in a batch, padded on the right; logits of all
positions at once; log-softmax in float32.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlogp_ray.policies.packing import TokenSequence

BATCH = 8


@torch.inference_mode()
def naive_logp(model: Any, texts: Sequence[TokenSequence]) -> list[Tensor]:
    """log p of each response token under one model."""
    return [logp.gather(1, ids[:, None]).squeeze(1) for logp, ids in _response_logp(model, texts)]


@torch.inference_mode()
def naive_statistics(base: Any, rl: Any, texts: Sequence[TokenSequence]) -> list[dict[str, Tensor]]:
    """Every statistic of the table for each text, as its definition reads."""
    both = zip(_response_logp(base, texts), _response_logp(rl, texts), strict=True)
    # Heads may be padded to different widths: over the ids that both have.
    return [_statistics(b[:, : r.shape[1]], r[:, : b.shape[1]], ids) for (b, ids), (r, _) in both]


def _response_logp(model: Any, texts: Sequence[TokenSequence]) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(model.parameters()).device
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        longest = max(len(t.prompt_ids) + len(t.response_ids) for t in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, text in enumerate(batch):
            whole = np.concatenate([text.prompt_ids, text.response_ids])
            ids[row, : len(whole)] = torch.from_numpy(whole)
        logp = model(ids.to(device), use_cache=False).logits.float().log_softmax(-1)
        for row, text in enumerate(batch):
            first = len(text.prompt_ids) - 1
            response = torch.from_numpy(text.response_ids.astype(np.int64)).to(device)
            yield logp[row, first : first + len(response)], response


def _statistics(base: Tensor, rl: Tensor, ids: Tensor) -> dict[str, Tensor]:
    p_base, p_rl = base.exp(), rl.exp()
    log_m = torch.logaddexp(base, rl) - math.log(2)
    logp_base, logp_rl = (x.gather(1, ids[:, None]) for x in (base, rl))
    (max_base, top_base), (max_rl, top_rl) = base.max(-1), rl.max(-1)
    logp_of_top = base.gather(1, top_rl[:, None])
    return {
        "logp_base": logp_base.squeeze(1),
        "logp_rl": logp_rl.squeeze(1),
        "delta_logp": (logp_rl - logp_base).squeeze(1),
        "entropy_base": -(p_base * base).sum(-1),
        "entropy_rl": -(p_rl * rl).sum(-1),
        "kl_rl_base": (p_rl * (rl - base)).sum(-1),
        "kl_base_rl": (p_base * (base - rl)).sum(-1),
        "js": ((p_base * (base - log_m)).sum(-1) + (p_rl * (rl - log_m)).sum(-1)) / 2,
        "rank_base": (base > logp_base).sum(-1),
        "rank_rl": (rl > logp_rl).sum(-1),
        "top1_id_base": top_base,
        "top1_id_rl": top_rl,
        "top1_agree": top_base == top_rl,
        "max_logp_base": max_base,
        "max_logp_rl": max_rl,
        "logp_base_of_rl_top1": logp_of_top.squeeze(1),
        "rank_base_of_rl_top1": (base > logp_of_top).sum(-1),
    }
