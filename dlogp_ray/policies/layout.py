"""What one pass over a packed row of texts sees: segments, what they share, and what came before.

Sequences lie one after another in a single row of tokens, without padding. A segment of it sees
itself causally, before that an earlier segment (a prompt that several responses share, so that it
runs once), and before that what a ``Past`` keeps from earlier passes (so that long texts run in
bounded memory).

    tokens     p p p p | a a a | b b b b b | q q | c c c
    segment    prompt    a       b           q     c
    prefix               prompt  prompt            q

Shapes: t packed tokens, g query heads, k key-value heads, q queries and s keys of one segment,
d size of a query, e size of a value.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlogp_ray.policies.attend import Softmax, attend, attend_alike, is_exact
from dlogp_ray.policies.attention import RowPass, visible
from dlogp_ray.policies.packing import Segment


class Past:
    """Keys and values of a text that is longer than one pass, for each attention layer.

    Args:
        capacity: Tokens that it can hold.
    """

    def __init__(self, capacity: int) -> None:
        """Nothing is allocated before the first pass."""
        self.capacity = capacity
        self.length = 0
        self._layers: list[tuple[Tensor, Tensor]] = []

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers [k, capacity, d] and [k, capacity, e] of layer ``index``."""
        if index == len(self._layers):
            self._layers.append(
                (
                    key.new_empty(key.shape[0], self.capacity, key.shape[2]),
                    value.new_empty(value.shape[0], self.capacity, value.shape[2]),
                )
            )
        return self._layers[index]


class Layout(RowPass):
    """One pass over a packed row.

    Args:
        segments: In the order of the row.
        past: What every segment sees before all else, or None.
        keep: Whether the pass, then of a single segment, is appended to ``past``.
    """

    def __init__(
        self, segments: Sequence[Segment], past: Past | None = None, *, keep: bool = False
    ) -> None:
        """Nothing is computed yet."""
        super().__init__()
        self._segments = segments
        self._past = past
        self._keep = keep
        self._masks: dict[tuple[int | None, int, int], Tensor | None] = {}
        self._indices: dict[Segment, tuple[Tensor, Tensor]] = {}

    def positions(self, device: torch.device) -> Int[Tensor, " t"]:
        """The position of each token in its own text."""
        before = self._past.length if self._past else 0
        return torch.cat(
            [
                torch.arange(s.stop - s.start, device=device) + before + s.prefix_length
                for s in self._segments
            ]
        )

    def attend(
        self,
        query: Float[Tensor, "g t d"],
        key: Float[Tensor, "k t d"],
        value: Float[Tensor, "k t e"],
        pattern: int | None,
        softmax: Softmax,
    ) -> Float[Tensor, "t g e"]:
        """Each segment over what it sees."""
        past = self._past_of(self.next_layer(), key, value)
        out = query.new_empty(query.shape[1], query.shape[0], value.shape[2])
        alone = list(self._segments)
        if past is None and is_exact(query, softmax):
            alone = []
            for segments in self._alike:
                if len(segments) == 1:
                    alone.append(segments[0])
                    continue
                at, seen = self._places(segments, query.device)
                mask = self._mask(pattern, at.shape[1], seen.shape[1], query.device)
                by_text = [
                    one[:, of].transpose(0, 1).contiguous()
                    for one, of in ((query, at), (key, seen), (value, seen))
                ]
                alike = attend_alike(by_text[0], by_text[1], by_text[2], mask, softmax)
                out[at] = alike.transpose(1, 2)
        for segment in alone:
            own = slice(segment.start, segment.stop)
            prefix = slice(*segment.prefix)
            keys, values = key[:, own], value[:, own]
            if segment.prefix_length:
                keys, values = (torch.cat([x[:, prefix], x[:, own]], 1) for x in (key, value))
            if past is not None:
                keys, values = past if self._keep else _after(past, keys, values)
            mask = self._mask(pattern, own.stop - own.start, keys.shape[1], query.device)
            result = attend(query[:, own], keys, values, mask, softmax, compiled=self.compiled)
            out[own] = result.transpose(0, 1)
        return out

    def finish(self) -> None:
        """A pass that is kept has become part of the past."""
        if self._keep and self._past is not None:
            self._past.length += self._segments[0].stop

    @cached_property
    def _alike(self) -> list[list[Segment]]:
        """Segments of one length, after prefixes of one length, together."""
        by_lengths: dict[tuple[int, int], list[Segment]] = {}
        for segment in self._segments:
            lengths = (segment.stop - segment.start, segment.prefix_length)
            by_lengths.setdefault(lengths, []).append(segment)
        return list(by_lengths.values())

    def _places(
        self, segments: Sequence[Segment], device: torch.device
    ) -> tuple[Int[Tensor, "r q"], Int[Tensor, "r s"]]:
        """Where the tokens of segments of one length are in the row, and those that they see."""
        first = segments[0]
        if first not in self._indices:
            own = [range(segment.start, segment.stop) for segment in segments]
            seen = [
                [*range(*segment.prefix), *of] for segment, of in zip(segments, own, strict=True)
            ]
            self._indices[first] = (
                torch.tensor([*map(list, own)], device=device),
                torch.tensor(seen, device=device),
            )
        return self._indices[first]

    def _mask(
        self, pattern: int | None, queries: int, keys: int, device: torch.device
    ) -> Tensor | None:
        """[q, s], true where a query may look; None where that is plainly causal."""
        if pattern is None:
            return None
        wanted = (pattern, queries, keys)
        if wanted not in self._masks:
            positions = torch.arange(keys - queries, keys, device=device)
            mask = visible(self.patterns[pattern], positions, keys)
            causal = torch.equal(mask, visible(None, positions, keys))
            self._masks[wanted] = None if causal else mask
        return self._masks[wanted]

    def _past_of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keys and values up to this pass, or with it where it is kept; None without a past."""
        past = self._past
        if past is None:
            return None
        keys, values = past.layer(layer, key, value)
        end = past.length
        if self._keep:
            end += key.shape[1]
            keys[:, past.length : end] = key
            values[:, past.length : end] = value
        return keys[:, :end], values[:, :end]


def _after(past: tuple[Tensor, Tensor], keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([past[0], keys], 1), torch.cat([past[1], values], 1)
