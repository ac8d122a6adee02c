"""What right is: every statistic of one sequence, the slow and obvious way, in float64.

The weights are brought to float64, the whole model runs (body, head and whatever the architecture
does to its logits), and each definition is written as it stands in the papers. Tests compare the
scorer with it.
"""

from typing import Any

import numpy as np
import torch


def reference_logp(model: Any, prompt_ids: list[int], response_ids: list[int]) -> np.ndarray:
    """log π over the vocabulary for each response token: [response, v] float64, nats.

    Args:
        model: A Hugging Face causal language model; it is converted to float64 in place.
        prompt_ids: At least one token.
        response_ids: The tokens that are scored.
    """
    ids = torch.tensor([prompt_ids + response_ids])
    with torch.no_grad():
        logits = model.double()(input_ids=ids, use_cache=False).logits[0]
    logp = torch.log_softmax(logits.double(), dim=-1)
    return np.asarray(logp[len(prompt_ids) - 1 : -1].numpy())


def reference_statistics(
    logp_base: np.ndarray, logp_rl: np.ndarray, response_ids: list[int]
) -> dict[str, np.ndarray]:
    """The table's statistics of a pair whose heads have one width: column -> [response]."""
    base, rl = np.exp(logp_base), np.exp(logp_rl)
    mixture = (base + rl) / 2
    rows = np.arange(len(response_ids))
    top_rl = logp_rl.argmax(1)

    def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-320)) - np.log(q)), 0.0)
        return np.asarray(terms.sum(1))

    def rank(logp: np.ndarray, ids: Any) -> np.ndarray:
        return np.asarray((logp > logp[rows, ids][:, None]).sum(1))

    return {
        "logp_base": logp_base[rows, response_ids],
        "logp_rl": logp_rl[rows, response_ids],
        "delta_logp": logp_rl[rows, response_ids] - logp_base[rows, response_ids],
        "entropy_base": -(base * logp_base).sum(1),
        "entropy_rl": -(rl * logp_rl).sum(1),
        "kl_rl_base": kl(rl, base),
        "kl_base_rl": kl(base, rl),
        "js": (kl(base, mixture) + kl(rl, mixture)) / 2,
        "rank_base": rank(logp_base, response_ids),
        "rank_rl": rank(logp_rl, response_ids),
        "rank_base_of_rl_top1": rank(logp_base, top_rl),
        "logp_base_of_rl_top1": logp_base[rows, top_rl],
        "top1_id_base": logp_base.argmax(1),
        "top1_id_rl": top_rl,
        "top1_agree": logp_base.argmax(1) == top_rl,
        "max_logp_base": logp_base.max(1),
        "max_logp_rl": logp_rl.max(1),
    }
