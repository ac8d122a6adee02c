"""Per-token statistics of one or two policies from their hidden states, exact over the vocabulary.

Definitions: "The columns" of the README; sources: arXiv 2603.22117 (Δlog p, KL) and
arXiv 2603.22446 (Jensen-Shannon, ranks). Natural logarithms; log-probabilities, entropies and
divergences in nats.

The rows go through in small chunks, so that [n, v] never exists; of a chunk, the logits of two
policies are held, however many policies there are. Two passes over their vocabulary tiles:

    1  largest logit and sum of exponentials, online       -> log-sum-exp
    2  everything that needs probabilities, as sums        -> entropy, KL, JS, ranks, first choice

The second pass works on normalised log-probabilities: the divergences of equal policies are then
exactly 0, and no small divergence is the difference of two large numbers.

Shapes: n rows (response tokens), r rows of a chunk, w ids of a tile, h hidden size, v vocabulary.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from dlogp_ray.policies.compiling import with_room
from dlogp_ray.policies.lm_head import LmHead

HELD_BYTES = {"cpu": 32 * 2**20, "cuda": 2**30}
"""Memory for the logits of one chunk. On a CPU, with a float32 tile of the lm head and the
temporaries of the statistics, all is below 64 MB."""
HELD_BYTES_COMPILED = {"cpu": 48 * 2**20, "cuda": 2**30}
"""The same where passes are compiled, which have no temporaries. Each chunk reads the whole lm
head: of 85 rows x 49,152 ids the product reached 420 GFLOP/s on one core, of 128 rows 450."""
TILE_ELEMENTS = 2**17
"""Numbers of one tile where nothing is compiled: its temporaries stay in a core's cache."""
SAMPLED_STATISTICS = ("logp", "outside")
"""What a job gets that asks for the sampled tokens only."""
_LN2 = math.log(2)
_NOWHERE = 2**30
"""A place beyond any vocabulary."""

Statistics = dict[str, Shaped[Tensor, " n"]]


def chunk_rows(widths: list[int], device_type: str = "cpu", *, compiled: bool = False) -> int:
    """How many rows of the two widest heads' logits fit into ``HELD_BYTES``."""
    limits = HELD_BYTES_COMPILED if compiled else HELD_BYTES
    held = limits.get(device_type, limits["cpu"])
    return max(1, held // (4 * sum(sorted(widths)[-2:])))


@torch.inference_mode()
def score_rows(
    hidden: Mapping[str, Float[Tensor, "n _"]],
    heads: Mapping[str, LmHead],
    targets: Int[Tensor, " n"],
    *,
    base: str | None,
    temperature: float = 1.0,
    sampled_only: bool = False,
    compiled: bool = False,
) -> dict[str, Statistics]:
    """All statistics of every policy, and of every other policy against ``base``.

    Args:
        hidden: By policy, the states that predict the targets: [n, h], each its own h.
        heads: By policy, its lm head.
        targets: [n] token ids, all below the narrowest head's width.
        base: The policy that the others are compared with, None for none.
        temperature: Logits are divided by it.
        sampled_only: Only ``SAMPLED_STATISTICS``, which need a single pass.
        compiled: Let ``torch.compile`` fuse each pass (seconds, once a process).

    Returns:
        By policy, each [n]: ``logp``; ``entropy`` H = −Σ π log π; ``max_logp`` log max π;
        ``rank``, the number of ids with a strictly higher probability than the target;
        ``top1_id``, the lowest id of the highest probability; ``outside``, the probability of ids
        that another policy does not have. For every policy but the base also ``kl_rl_base``
        KL(π_RL ‖ π_base), ``kl_base_rl``; ``js``, the Jensen-Shannon divergence with
        m = ½(π_base + π_RL), in [0, ln 2]; ``top1_agree``; ``logp_base_of_rl_top1`` and
        ``rank_base_of_rl_top1``, how the base sees the RL policy's first choice.
    """
    first = next(iter(heads.values()))
    widths = [head.width for head in heads.values()]
    fitting = chunk_rows(widths, first.weight.device.type, compiled=compiled)
    common = min(widths)
    rows = min(fitting, max(1, len(targets)))
    ordered = [name for name in heads if name == base] + [name for name in heads if name != base]
    buffers = _Buffers(rows, first.weight.device)
    chunks: dict[str, list[Statistics]] = {name: [] for name in heads}
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        of_base: _RowLogits | None = None
        for name in ordered:
            logits = heads[name].logits(
                hidden[name][part],
                buffers.get(name == base, len(targets[part]), heads[name].width),
                compiled=compiled,
            )
            if temperature != 1.0:
                logits /= temperature
            policy = _RowLogits(logits, targets[part], common, compiled)
            statistics = policy.sampled() if sampled_only else policy.statistics()
            if of_base is not None and not sampled_only:
                statistics |= _pair(of_base, policy)
            if name == base:
                of_base = policy
            chunks[name].append(statistics)
    return {
        name: {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        for name, parts in chunks.items()
    }


class _Buffers:
    """Two areas for logits, the base's and that of the policy in turn, used again and again."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._rows, self._device = rows, device
        self._areas: dict[bool, Tensor] = {}

    def get(self, is_base: bool, rows: int, width: int) -> Tensor:
        area = self._areas.get(is_base)
        if area is None or len(area) < self._rows * width:
            area = self._areas[is_base] = torch.empty(self._rows * width, device=self._device)
        return area[: rows * width].view(rows, width)


class _RowLogits:
    """One policy's logits over a chunk, normalised by the first pass."""

    def __init__(
        self, logits: Float[Tensor, "r v"], targets: Int[Tensor, " r"], common: int, compiled: bool
    ) -> None:
        self.logits, self.targets, self.common, self.compiled = logits, targets, common, compiled
        inside, outside = self._tiles(0, common), self._tiles(common, logits.shape[1])
        maxima, sums = self._normalisers(inside)
        self.max_logit = maxima.max(0).values
        all_maxima, all_sums = maxima, sums
        if outside:
            more_maxima, more_sums = self._normalisers(outside)
            all_maxima, all_sums = torch.cat([maxima, more_maxima]), torch.cat([sums, more_sums])
        # log Σ exp of tiles with sums of exp(z − max): exact where a tile is all −inf, too.
        self.lse = torch.logsumexp(all_maxima + all_sums.log(), 0)
        self.outside = torch.zeros_like(self.lse)
        if outside:
            self.outside = (more_maxima + more_sums.log() - self.lse).exp().sum(0)
        self.target_logit = logits.gather(1, targets[:, None]).squeeze(1)

    def sampled(self) -> Statistics:
        return {"logp": self.target_logit - self.lse, "outside": self.outside}

    def statistics(self) -> Statistics:
        bounds = self.lse, self.target_logit, self.max_logit
        inside, outside = (
            self._tiles(0, self.common),
            self._tiles(self.common, self.logits.shape[1]),
        )
        parts = [self._run(own_sums, self.logits[:, tile], *bounds) for tile in (*inside, *outside)]
        entropy, rank, where = (torch.stack(column) for column in zip(*parts, strict=True))
        starts = torch.tensor([tile.start for tile in inside], device=self.logits.device)
        # A row of NaN has its largest nowhere; it is found by its other numbers.
        first = (where[: len(inside)] + starts[:, None]).min(0).values
        self.top1 = first.clamp(max=self.common - 1)
        return self.sampled() | {
            "entropy": entropy.sum(0),
            "max_logp": self.max_logit - self.lse,
            "rank": rank.sum(0).to(torch.int32),
            "top1_id": self.top1.to(torch.int32),
        }

    def _normalisers(self, tiles: list[slice]) -> tuple[Tensor, Tensor]:
        parts = [self._run(normaliser, self.logits[:, tile]) for tile in tiles]
        maxima, sums = zip(*parts, strict=True)
        return torch.stack(maxima), torch.stack(sums)

    def _tiles(self, start: int, stop: int) -> list[slice]:
        """Slices of the vocabulary; a compiled pass needs no cutting."""
        step = max(1, stop - start)
        if not self.compiled:
            step = max(256, TILE_ELEMENTS // max(1, len(self.logits)))
        return [slice(at, min(at + step, stop)) for at in range(start, stop, step)]

    def _run(self, function: Callable[..., Any], *tensors: Tensor) -> Any:
        return (_compile(function) if self.compiled else function)(*tensors)


def _pair(base: _RowLogits, rl: _RowLogits) -> Statistics:
    logit_of_top1 = base.logits.gather(1, rl.top1[:, None]).squeeze(1)
    parts = [
        base._run(
            pair_sums,
            base.logits[:, tile],
            rl.logits[:, tile],
            base.lse,
            rl.lse,
            logit_of_top1,
        )
        for tile in base._tiles(0, base.common)
    ]
    kl_rl_base, kl_base_rl, js, rank = (
        torch.stack(column).sum(0) for column in zip(*parts, strict=True)
    )
    return {
        "kl_rl_base": kl_rl_base.clamp_(min=0),
        "kl_base_rl": kl_base_rl.clamp_(min=0),
        "js": js.clamp_(0, _LN2),
        "top1_agree": rl.top1 == base.top1,
        "logp_base_of_rl_top1": logit_of_top1 - base.lse,
        "rank_base_of_rl_top1": rank.to(torch.int32),
    }


def normaliser(logits: Float[Tensor, "r w"]) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
    """First pass over a tile: its largest logit and Σ exp(logit − largest).

    A tile of nothing but −inf has sum 0.
    """
    shift = logits.amax(-1).clamp(min=torch.finfo(torch.float32).min)
    return shift, (logits - shift[:, None]).exp().sum(-1)


def own_sums(
    logits: Float[Tensor, "r w"],
    lse: Float[Tensor, " r"],
    target_logit: Float[Tensor, " r"],
    largest: Float[Tensor, " r"],
) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"], Int[Tensor, " r"]]:
    """Second pass over a tile of one policy.

    Returns:
        Its shares of the entropy and of the target's rank, and the first place in it where the
        logit is ``largest``: far beyond any vocabulary where there is none.
    """
    logp = logits - lse[:, None]
    p = logp.exp()
    # An id with probability 0 has logp −inf and adds 0, not NaN.
    entropy = torch.where(p > 0, -p * logp, 0.0).sum(-1)
    places = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    first = torch.where(logits == largest[:, None], places, _NOWHERE).amin(-1)
    return entropy, _count(logits > target_logit[:, None]), first


def pair_sums(
    base: Float[Tensor, "r w"],
    rl: Float[Tensor, "r w"],
    lse_base: Float[Tensor, " r"],
    lse_rl: Float[Tensor, " r"],
    base_logit_of_rl_top1: Float[Tensor, " r"],
) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"], Float[Tensor, " r"], Float[Tensor, " r"]]:
    """Second pass over a tile of two policies: shares of both KL, of JS and of the rank.

    With δ = log π_RL − log π_base and r = exp(−|δ|), the mixture m of JS is seen from the more
    probable of the two as log(m / π) = log((1 + r) / 2), and from the other as that + |δ|: both
    exactly 0 at δ = 0, and good to a few units in their own last place near it, where ln 2 would
    cancel.
    """
    logp_base, logp_rl = base - lse_base[:, None], rl - lse_rl[:, None]
    p_base, p_rl = logp_base.exp(), logp_rl.exp()
    delta = logp_rl - logp_base
    distance = delta.abs()
    log_m = _log_of_mean_with_one((-distance).exp())
    more, less = torch.maximum(p_base, p_rl), torch.minimum(p_base, p_rl)
    # Where a probability is 0 its terms are 0, not NaN.
    js = torch.where(more > 0, more * log_m, 0.0)
    js = js + torch.where(less > 0, less * (log_m + distance), 0.0)
    return (
        torch.where(p_rl > 0, p_rl * delta, 0.0).sum(-1),
        torch.where(p_base > 0, -p_base * delta, 0.0).sum(-1),
        -js.sum(-1) / 2,
        _count(base > base_logit_of_rl_top1[:, None]),
    )


def _log_of_mean_with_one(r: Tensor) -> Tensor:
    """log((1 + r) / 2) for r in [0, 1], as 2 artanh z with z = (r − 1) / (r + 3) in [−1/3, 0].

    Eight terms of z + z³/3 + z⁵/5 + …: what is left out is below 2e-9 of the sum. Products and
    sums take half the time of a logarithm.
    """
    z = (r - 1) / (r + 3)
    square = z * z
    series = square * (1 / 15) + 1 / 13
    for power in (11, 9, 7, 5, 3, 1):
        series = series * square + 1 / power
    return 2 * z * series


def _count(there: Tensor) -> Tensor:
    """Of each row, as float32: exact up to 2²⁴, and several times as fast as in int64."""
    return there.to(torch.float32).sum(-1)


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # Unwrapped: a decorator that checks shapes, as the tests have it, can't be traced.
    # One loop a pass: by default a term of more than 50 operations that is used twice is written
    # out, [r, v] and all.
    fused = torch.compile(
        inspect.unwrap(function), dynamic=True, options={"realize_opcount_threshold": 1_000}
    )
    return with_room(fused)
