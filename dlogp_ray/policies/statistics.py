"""Per-token statistics of one or two policies from their hidden states, exact over the vocabulary.

Definitions: METHODS of the README ("The columns"); sources: arXiv 2603.22117 (Δlog p, KL) and
arXiv 2603.22446 (Jensen-Shannon, ranks). Natural logarithms; log-probabilities, entropies and
divergences in nats. Everything is reduced in float32, in chunks of rows, so that [n, v] is never
in memory for all rows at once.

Shapes: n rows (response tokens), h hidden size, v vocabulary (rows of the lm head).
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from dlogp_ray.policies.policy import LmHead

CHUNK_BYTES = 256 * 2**20
"""Memory for one chunk's [rows, v] float32 arrays."""
_ARRAYS_PER_POLICY = 4
_MAX_CHUNK_ROWS = 8_192

Statistics = dict[str, Shaped[Tensor, " n"]]


def chunk_rows(widths: list[int]) -> int:
    """How many rows of logits over heads of these ``widths`` fit into ``CHUNK_BYTES``."""
    bytes_a_row = 4 * _ARRAYS_PER_POLICY * sum(widths)
    return max(1, min(_MAX_CHUNK_ROWS, CHUNK_BYTES // bytes_a_row))


@torch.inference_mode()
def score_rows(
    hidden: Mapping[str, Float[Tensor, "n _"]],
    heads: Mapping[str, LmHead],
    targets: Int[Tensor, " n"],
    *,
    base: str | None,
    temperature: float = 1.0,
) -> dict[str, Statistics]:
    """All statistics of every policy, and of every other policy against ``base``.

    Args:
        hidden: By policy, the states that predict the targets: [n, h], each its own h.
        heads: By policy, its lm head.
        targets: [n] token ids, all below the narrowest head's width.
        base: The policy that the others are compared with, None for none.
        temperature: Logits are divided by it.

    Returns:
        By policy: for the base its own statistics, for every other its own and the pair's; each
        [n], named as ``policy_statistics`` and ``pair_statistics`` name them.
    """
    common = min(head.width for head in heads.values())
    rows = chunk_rows([head.width for head in heads.values()])
    chunks: dict[str, list[Statistics]] = {name: [] for name in heads}
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        logps = {
            name: _log_softmax(head.logits(hidden[name][part]), temperature)
            for name, head in heads.items()
        }
        for name, logp in logps.items():
            statistics = policy_statistics(logp, targets[part], common)
            if base is not None and name != base:
                statistics |= pair_statistics(logps[base][:, :common], logp[:, :common])
            chunks[name].append(statistics)
    return {
        name: {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        for name, parts in chunks.items()
    }


def _log_softmax(logits: Float[Tensor, "n v"], temperature: float) -> Float[Tensor, "n v"]:
    if temperature != 1.0:
        logits /= temperature
    return torch.log_softmax(logits, dim=-1)


def policy_statistics(
    logp: Float[Tensor, "n v"], targets: Int[Tensor, " n"], common: int
) -> Statistics:
    """What one policy says of each target.

    Args:
        logp: Log-probabilities over the policy's own head, nats.
        targets: Token ids.
        common: The ids below this exist in every policy; the first choice is taken among them.

    Returns:
        ``logp``; ``entropy`` H = −Σ π log π; ``max_logp`` log max π; ``rank``, the number of ids
        with a strictly higher probability than the target; ``top1_id``, the lowest id of the
        highest probability; ``outside``, the probability of the ids from ``common`` on.
    """
    target_logp = logp.gather(1, targets[:, None]).squeeze(1)
    probability = logp.exp()
    # An id with probability 0 has logp −inf and adds 0, not NaN.
    entropy = torch.special.entr(probability).sum(-1)
    max_logp, top1 = logp[:, :common].max(-1)
    return {
        "logp": target_logp,
        "entropy": entropy,
        "max_logp": max_logp,
        "rank": (logp > target_logp[:, None]).sum(-1, dtype=torch.int32),
        "top1_id": top1.to(torch.int32),
        "outside": probability[:, common:].sum(-1),
    }


def pair_statistics(base: Float[Tensor, "n c"], rl: Float[Tensor, "n c"]) -> Statistics:
    """What changed between two policies at each position, over the ids that both have.

    Args:
        base: Log-probabilities of the base policy, nats.
        rl: Those of the other policy.

    Returns:
        ``kl_rl_base`` KL(π_RL ‖ π_base), ``kl_base_rl``; ``js``, the Jensen-Shannon divergence
        with m = ½(π_base + π_RL), in [0, ln 2]; ``top1_agree``; ``logp_base_of_rl_top1`` and
        ``rank_base_of_rl_top1``, how the base sees the RL policy's first choice.
    """
    p_base, p_rl = base.exp(), rl.exp()
    delta = rl - base
    # log m − log π_base = softplus(delta) − ln 2: exactly 0 where the two agree, and no
    # difference of nearly equal entropies. Where a probability is 0 its term is 0, not NaN.
    js_base = torch.where(p_base > 0, p_base * (math.log(2) - _softplus(delta)), 0.0).sum(-1)
    js_rl = torch.where(p_rl > 0, p_rl * (math.log(2) - _softplus(-delta)), 0.0).sum(-1)
    top1 = rl.argmax(-1, keepdim=True)
    logp_of_top1 = base.gather(1, top1)
    return {
        "kl_rl_base": torch.where(p_rl > 0, p_rl * delta, 0.0).sum(-1).clamp_(min=0),
        "kl_base_rl": torch.where(p_base > 0, -p_base * delta, 0.0).sum(-1).clamp_(min=0),
        "js": ((js_base + js_rl) / 2).clamp_(0, math.log(2)),
        "top1_agree": top1.squeeze(1) == base.argmax(-1),
        "logp_base_of_rl_top1": logp_of_top1.squeeze(1),
        "rank_base_of_rl_top1": (base > logp_of_top1).sum(-1, dtype=torch.int32),
    }


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, x.new_zeros(()))
