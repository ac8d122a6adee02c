"""The reweighting schemes: pure functions of response-aligned tensors, torch and NumPy alike.

A weight multiplies the advantage or the loss of its token. Nothing is differentiated through it:
tensors are detached. Where the mask is 0 the weight is 1. All are computed and come in float32.
What a scheme needs of more than one text (a quantile, a group's mean) is an argument, so that it
may be of a batch or of a whole table: see ``weights.batch`` and ``weights.whole``.

Δlog p = log p_RL − log p_base; π_old is the policy that generated the texts. Natural logarithms.

Shapes: b texts, t positions of their responses, right-padded.
"""

import math
from typing import Any

import array_api_compat
from jaxtyping import Bool, Float, Shaped

from dlogp_ray.config.schemes import (
    Delta,
    Divergence,
    Dominate,
    FutureKl,
    LowProb,
    Ppl,
    RsiBand,
)

Tensor = Any
"""A torch tensor or a NumPy array."""
_BLOCK = 128
"""Positions of which sums to the end are one matrix product."""


def low_prob(
    logp_old: Float[Tensor, "b t"], mask: Shaped[Tensor, "b t"], *, alpha: float
) -> Float[Tensor, "b t"]:
    """1 + α(1 − π_old(y)): unlikely tokens weigh more, whatever the sign of their advantage.

    Args:
        logp_old: log π_old(y), nats.
        mask: 1 where a token counts.
        alpha: α ≥ 0.

    Raises:
        ValueError: A parameter is out of its range (pydantic's ``ValidationError``).

    Source: arXiv 2603.22117, Eq. 8. It is not renormalised.
    """
    alpha = LowProb(alpha=alpha).alpha
    xp, logp, counts = _prepared(logp_old, mask)
    return xp.where(counts, 1 + alpha * (1 - xp.exp(logp)), 1.0)


def dominate(
    logp_old: Float[Tensor, "b t"], mask: Shaped[Tensor, "b t"], *, alpha: float
) -> Float[Tensor, "b t"]:
    """α·π_old(y) + 1 − α: unlikely tokens weigh less.

    Args:
        logp_old: log π_old(y), nats.
        mask: 1 where a token counts.
        alpha: α in [0, 1].

    Raises:
        ValueError: A parameter is out of its range.

    Source: AR (advantage reweighting) of arXiv 2505.12929.
    """
    alpha = Dominate(alpha=alpha).alpha
    xp, logp, counts = _prepared(logp_old, mask)
    return xp.where(counts, alpha * xp.exp(logp) + (1 - alpha), 1.0)


def log_ppl(logp_old: Float[Tensor, "b t"], mask: Shaped[Tensor, "b t"]) -> Float[Tensor, " b"]:
    """log PPL of each text: the mean of −log π_old(y) over its tokens, nats; 0 without tokens."""
    xp, logp, counts = _prepared(logp_old, mask)
    return -_masked_mean(xp, logp, counts)


def ppl(
    logp_old: Float[Tensor, "b t"],
    mask: Shaped[Tensor, "b t"],
    *,
    mean: Float[Tensor, " b"],
    std: Float[Tensor, " b"],
    alpha: float,
    low: float | None = None,
    high: float | None = None,
    min_spread: float = Ppl.model_fields["min_spread"].default,
) -> Float[Tensor, "b t"]:
    """1 − α·(log PPL − mean)/std, one weight for all tokens of a text: likely texts weigh more.

    Args:
        logp_old: log π_old(y), nats.
        mask: 1 where a token counts.
        mean: Of log PPL over the text's group.
        std: Its standard deviation there (over n − 1).
        alpha: α ≥ 0.
        low: Clamp from below.
        high: Clamp from above.
        min_spread: Where ``std`` is not above it the weight is 1.

    Raises:
        ValueError: A parameter is out of its range.

    Source: arXiv 2508.02260.
    """
    p = Ppl(alpha=alpha, low=low, high=high, min_spread=min_spread)
    xp, _, counts = _prepared(logp_old, mask)
    spread = std > p.min_spread
    score = (log_ppl(logp_old, mask) - mean) / xp.where(spread, std, 1.0)
    weight = _clipped(xp, 1 - p.alpha * score, p.low, p.high)
    weight = xp.astype(xp.where(spread, weight, 1.0), xp.float32)
    return xp.where(counts, weight[:, None], 1.0)


def entropy_top(
    entropy_old: Float[Tensor, "b t"], mask: Shaped[Tensor, "b t"], *, threshold: float
) -> Float[Tensor, "b t"]:
    """1 where the entropy is ``threshold`` or more, else 0: only the forking tokens count.

    Args:
        entropy_old: H(π_old), nats.
        mask: 1 where a token counts.
        threshold: The (1 − ρ) quantile; see ``upper_quantile_rank``.

    Source: the 80/20 rule of arXiv 2506.01939.
    """
    xp, entropy, counts = _prepared(entropy_old, mask)
    return xp.where(counts, xp.astype(entropy >= threshold, xp.float32), 1.0)


def upper_quantile_rank(count: int, rho: float) -> int:
    """Which of ``count`` values, from 0 in ascending order, is the least of the top share ρ.

    Of the values at and above it there are as many as at and above the interpolated (1 − ρ)
    quantile, which is what ``torch.quantile`` and NumPy compute by default.
    """
    # 1e-9: (n − 1)(1 − ρ) is a whole number where it differs from one by rounding.
    return max(0, math.ceil((count - 1) * (1 - rho) - 1e-9))


def k3(logp_old: Float[Tensor, "b t"], logp_current: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """An estimate of KL(π_old‖π_current) from tokens that π_old drew: r − 1 − log r ≥ 0, nats.

    r = π_current(y)/π_old(y). Source: Schulman, "Approximating KL divergence" (2020), k3.
    """
    xp, old, current = _prepared(logp_old, logp_current, truth=False)
    return xp.expm1(current - old) - (current - old)


def divergence(
    kl: Float[Tensor, "b t"], mask: Shaped[Tensor, "b t"], *, scale: float, alpha: float
) -> Float[Tensor, "b t"]:
    """1 + s·(σ(α·KL) − ½): tokens whose distribution has moved weigh more (s > 0) or less.

    Args:
        kl: KL(π_old‖π_current) of each position, exact or by ``k3``, nats.
        mask: 1 where a token counts.
        scale: s.
        alpha: α > 0.

    Raises:
        ValueError: A parameter is out of its range.

    Source: arXiv 2603.22446.
    """
    p = Divergence(scale=scale, alpha=alpha)
    xp, values, counts = _prepared(kl, mask)
    return xp.where(counts, 1 + p.scale * (1 / (1 + xp.exp(-p.alpha * values)) - 0.5), 1.0)


def delta(
    delta_logp: Float[Tensor, "b t"],
    mask: Shaped[Tensor, "b t"],
    *,
    beta: float,
    low: float,
    high: float,
) -> Float[Tensor, "b t"]:
    """clip(exp(β·Δlog p), low, high), then mean 1 within each text.

    Args:
        delta_logp: log p_RL(y) − log p_base(y), nats.
        mask: 1 where a token counts.
        beta: β; above 0, tokens that RL has raised weigh more.
        low: Clip from below, ≥ 0.
        high: Clip from above, > 0.

    Raises:
        ValueError: A parameter is out of its range.

    Source: this project; the direction of arXiv 2603.22117 as a weight.
    """
    p = Delta(beta=beta, low=low, high=high)
    xp, values, counts = _prepared(delta_logp, mask)
    return mean_one(_clipped(xp, xp.exp(p.beta * values), p.low, p.high), counts)


def rsi_band(
    logp_old: Float[Tensor, "b t"],
    entropy_old: Float[Tensor, "b t"],
    mask: Shaped[Tensor, "b t"],
    *,
    low: float,
    high: float,
) -> Float[Tensor, "b t"]:
    """1 where the relative surprisal −log π_old(y)/H is within [low, high], else 0.

    Where H is 0 (one token has all the probability) it is not defined and the weight is 1.

    Args:
        logp_old: log π_old(y), nats.
        entropy_old: H(π_old), nats.
        mask: 1 where a token counts.
        low: Least relative surprisal that is kept, ≥ 0.
        high: Greatest.

    Raises:
        ValueError: A parameter is out of its range.

    Source: RSI-S, arXiv 2606.31575.
    """
    p = RsiBand(low=low, high=high)
    xp, logp, counts = _prepared(logp_old, mask)
    _, entropy, _ = _prepared(entropy_old, mask)
    uncertain = entropy > 0
    rsi = -logp / xp.where(uncertain, entropy, 1.0)
    inside = ~uncertain | ((rsi >= p.low) & (rsi <= p.high))
    return xp.where(counts, xp.astype(inside, xp.float32), 1.0)


def future_kl(
    logp_old: Float[Tensor, "b t"],
    logp_current: Float[Tensor, "b t"],
    mask: Shaped[Tensor, "b t"],
    *,
    half_life: float,
    low: float,
    high: float,
    max_ratio: float | None = None,
    advantages: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, "b t"]:
    """clip(exp(Σ_{k≥t} 2^{−(k−t)/h}·Δ_k), low, high), Δ = log π_current(y) − log π_old(y).

    Args:
        logp_old: log π_old(y), nats.
        logp_current: log π_current(y), nats.
        mask: 1 where a token counts; the others are no part of sums.
        half_life: h, tokens.
        low: Clip from below, ≥ 0; FIPO has 1.0, or 0.8.
        high: Clip from above.
        max_ratio: Tokens of texts with a negative advantage, whose ratio π_current/π_old is above
            this, are left out of the sums and weigh 1. None: none are.
        advantages: Of each text; only the sign matters.

    Raises:
        ValueError: A parameter is out of its range, or ``max_ratio`` came without advantages.

    Source: FIPO, arXiv 2603.19835.
    """
    p = FutureKl(half_life=half_life, low=low, high=high, max_ratio=max_ratio)
    xp, old, counts = _prepared(logp_old, mask)
    _, current, _ = _prepared(logp_current, mask)
    shift = current - old
    taken = counts
    if p.max_ratio is not None:
        if advantages is None:
            raise ValueError(
                "future_kl: max_ratio needs the texts' advantages; give them, or no ratio"
            )
        taken = counts & ~((advantages < 0)[:, None] & (shift > math.log(p.max_ratio)))
    sums = discounted_sums(xp.where(taken, shift, 0.0), 2.0 ** (-1 / p.half_life))
    return xp.where(taken, _clipped(xp, xp.exp(sums), p.low, p.high), 1.0)


def discounted_sums(values: Float[Tensor, "b t"], factor: float) -> Float[Tensor, "b t"]:
    """Σ_{k≥t} factor^{k−t}·v_k of each row, to its end."""
    xp = array_api_compat.array_namespace(values)
    rows, length = values.shape
    blocks = max(1, -(-length // _BLOCK))
    device = array_api_compat.device(values)
    padding = xp.zeros((rows, blocks * _BLOCK - length), dtype=values.dtype, device=device)
    cut = xp.reshape(xp.concat([values, padding], axis=1), (rows, blocks, _BLOCK))
    place = xp.arange(_BLOCK, dtype=values.dtype, device=device)
    ahead = place[:, None] - place[None, :]  # [k, t]
    discount = xp.where(ahead >= 0, factor ** xp.where(ahead >= 0, ahead, 0.0), 0.0)
    within = cut @ discount
    # What comes from the blocks after each, from the last one on.
    carried = [xp.zeros((rows,), dtype=values.dtype, device=device)]
    for block in range(blocks - 1, 0, -1):
        carried.append(within[:, block, 0] + factor**_BLOCK * carried[-1])
    after = xp.stack(carried[::-1], axis=1)
    sums = within + after[:, :, None] * factor ** (_BLOCK - place)
    return xp.reshape(sums, (rows, blocks * _BLOCK))[:, :length]


def combine(*weights: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """The product of several schemes' weights.

    Raises:
        ValueError: There are none.
    """
    if not weights:
        raise ValueError("expected the weights of at least one scheme, got none")
    return math.prod(weights[1:], start=weights[0])


def mean_one(weights: Float[Tensor, "b t"], mask: Shaped[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Weights divided by their mean over each text's tokens.

    A text keeps its weights where their mean is not above 0, as `ppl` without bounds can have it.
    """
    xp, values, counts = _prepared(weights, mask)
    mean = _masked_mean(xp, values, counts)
    scaled = values / xp.where(mean > 0, mean, 1.0)[:, None]
    return xp.where(counts, scaled, 1.0)


def _prepared(
    values: Float[Tensor, "b t"], other: Shaped[Tensor, "b t"], *, truth: bool = True
) -> tuple[Any, Float[Tensor, "b t"], Bool[Tensor, "b t"] | Float[Tensor, "b t"]]:
    """The array namespace, values in float32 without gradient, and the other as truth values."""
    xp = array_api_compat.array_namespace(values, other)
    if array_api_compat.is_torch_array(values):
        values, other = values.detach(), other.detach()
    if values.shape != other.shape:
        raise ValueError(
            f"expected two tensors of one shape [texts, positions], got {tuple(values.shape)} and "
            f"{tuple(other.shape)}"
        )
    values = xp.astype(values, xp.float32)
    return xp, values, other != 0 if truth else xp.astype(other, xp.float32)


def _masked_mean(
    xp: Any, values: Float[Tensor, "b t"], counts: Bool[Tensor, "b t"]
) -> Float[Tensor, " b"]:
    sums = xp.sum(xp.where(counts, values, 0.0), axis=1)
    tokens = xp.sum(xp.astype(counts, xp.float32), axis=1)
    return sums / xp.where(tokens > 0, tokens, 1.0)


def _clipped(xp: Any, values: Tensor, low: float | None, high: float | None) -> Tensor:
    return values if low is None and high is None else xp.clip(values, low, high)
