"""The attention of one text or of several, as exact as its dtype allows: softmax(scaling · Q Kᵀ) V.

Shapes: g query heads, k key-value heads, q queries, s keys, d size of a query, e size of a value,
r texts.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dlogp_ray.policies.kernels import bfloat16_kernels

SCORES_BYTES = 16 * 2**20
"""The most that the plain attention's scores take at a time."""


@dataclass(frozen=True)
class Softmax:
    """How scores become weights.

    Attributes:
        scaling: Multiplies the scores.
        softcap: Scores become ``softcap * tanh(scores / softcap)``, or None.
        sinks: [g], for each head a score that takes its share and adds no value, or None.
    """

    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether torch's fused kernel knows it."""
        return self.softcap is None and self.sinks is None

    def weights(
        self, scores: Float[Tensor, "*rows g q s"], allowed: Bool[Tensor, "*#rows #g q s"]
    ) -> Float[Tensor, "*rows g q s"]:
        """The weights of the keys, of products of queries and keys."""
        scores = scores.float() * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores.masked_fill_(~allowed, -torch.inf)
        if self.sinks is None:
            return torch.softmax(scores, -1)
        column = self.sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]


def attend(
    query: Float[Tensor, "g q d"],
    key: Float[Tensor, "k s d"],
    value: Float[Tensor, "k s e"],
    mask: Bool[Tensor, "q s"] | None,
    softmax: Softmax,
    *,
    compiled: bool = False,
) -> Float[Tensor, "g q e"]:
    """The attention of one text, where the last query stands at the last key.

    Args:
        query: Of the last q of s positions.
        key: g is a multiple of k: each key-value head serves g / k query heads in a row.
        value: As the keys.
        mask: True where a query may look; None is causal.
        softmax: How scores become weights.
        compiled: Whether a kernel may be built: 2 to 4 times as fast in bfloat16 on a CPU.
    """
    if is_exact(query, softmax):
        return _plain(query[None], key[None], value[None], mask, softmax)[0]
    if compiled and mask is None and _has_kernel(query, key, value):
        out = query.new_empty(query.shape[1], query.shape[0], value.shape[2]).transpose(0, 1)
        bfloat16_kernels().attend(query, key, value, out, softmax.scaling)
        return out
    queries, keys = query.shape[1], key.shape[1]
    aligned = mask is None and queries == keys
    if mask is None and not aligned:
        mask = _causal(0, queries, keys - queries, keys, query.device)
    return _fused(query[None], key[None], value[None], mask, softmax, causal=aligned)[0]


def attend_alike(
    query: Float[Tensor, "r g q d"],
    key: Float[Tensor, "r k s d"],
    value: Float[Tensor, "r k s e"],
    mask: Bool[Tensor, "q s"] | None,
    softmax: Softmax,
) -> Float[Tensor, "r g q e"]:
    """``attend`` of r texts of the same lengths at once, where ``is_exact``.

    Of short texts most of the time goes into calling so many small products, one after the other:
    the demo's job takes three quarters of the time so.

    Args:
        query: Of the last q of s positions of each text.
        key: g is a multiple of k.
        value: As the keys.
        mask: True where a query may look; None is causal.
        softmax: How scores become weights.
    """
    step = max(1, SCORES_BYTES // (4 * query.shape[1] * query.shape[2] * key.shape[2]))
    parts = (slice(start, start + step) for start in range(0, len(query), step))
    out = [_plain(query[of], key[of], value[of], mask, softmax) for of in parts]
    return out[0] if len(out) == 1 else torch.cat(out)


def attend_rows(
    query: Float[Tensor, "r g q d"],
    key: Float[Tensor, "r k s d"],
    value: Float[Tensor, "r k s e"],
    mask: Bool[Tensor, "r q s"],
    softmax: Softmax,
) -> Float[Tensor, "r g q e"]:
    """The attention of r texts at once, each with its own mask.

    Args:
        query: As many of each text.
        key: g is a multiple of k; s of the longest text.
        value: As the keys.
        mask: True where a query may look.
        softmax: How scores become weights.
    """
    if not is_exact(query, softmax):
        return _fused(query, key, value, mask[:, None], softmax)
    rows, heads, queries, _ = query.shape
    groups, keys = key.shape[1:3]
    step = max(1, SCORES_BYTES // (4 * heads * queries * keys))
    out = query.new_empty(rows, heads, queries, value.shape[3])
    for start in range(0, rows, step):
        of = slice(start, start + step)
        grouped = query[of].reshape(-1, groups, heads // groups * queries, query.shape[3])
        scores = (grouped @ key[of].transpose(2, 3)).view(-1, heads, queries, keys)
        weights = softmax.weights(scores, mask[of, None]).to(value.dtype)
        summed = weights.view(-1, groups, heads // groups * queries, keys) @ value[of]
        out[of] = summed.view(-1, heads, queries, value.shape[3])
    return out


def is_exact(query: Tensor, softmax: Softmax) -> bool:
    """Whether the definition is run: torch's fused kernel is not exact enough, or does not know it.

    In float32 on a CPU its exponential is good to about 20 bits, which moved the KL of the demo
    pair by up to 1.7e-5 nats (plain: 2.9e-6).
    """
    exact = query.dtype == torch.float32 and query.device.type == "cpu"
    return exact or not softmax.plain


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softmax: Softmax,
    *,
    causal: bool = False,
) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal,
        scale=softmax.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _has_kernel(*tensors: Tensor) -> bool:
    fits = all(
        t.device.type == "cpu" and t.dtype == torch.bfloat16 and t.stride(2) == 1 for t in tensors
    )
    return fits and tensors[0].shape[2] % 2 == 0 and bfloat16_kernels() is not None


def _plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, softmax: Softmax
) -> Tensor:
    """The definition, for as many queries at a time as ``SCORES_BYTES`` hold."""
    texts, heads, queries, _ = query.shape
    groups, keys = key.shape[1:3]
    offset = keys - queries
    rows = max(1, SCORES_BYTES // (4 * texts * heads * keys))
    grouped = query.view(texts, groups, heads // groups, queries, -1)
    out = []
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        # Keys that no query of these may see are left out: half of them, seen over a long text.
        seen = offset + stop
        part = grouped[:, :, :, start:stop].reshape(texts, groups, -1, query.shape[3])
        products = part @ key[:, :, :seen].transpose(2, 3)
        scores = products.view(texts, heads, stop - start, seen)
        allowed = (
            _causal(start, stop, offset, seen, query.device)
            if mask is None
            else mask[start:stop, :seen]
        )
        weights = softmax.weights(scores, allowed[None, None]).to(value.dtype)
        summed = weights.view(texts, groups, -1, seen) @ value[:, :, :seen]
        out.append(summed.view(texts, heads, stop - start, -1))
    return out[0] if len(out) == 1 else torch.cat(out, 2)


def _causal(start: int, stop: int, offset: int, keys: int, device: torch.device) -> Tensor:
    """[stop − start, keys]: query i stands at position offset + i."""
    query = torch.arange(start, stop, device=device)[:, None] + offset
    return torch.arange(keys, device=device)[None, :] <= query
