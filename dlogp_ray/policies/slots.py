"""Texts that grow side by side, and are cut back: the keys and values of each are kept in a slot.

    slot 0   p p p a a b b b b .      length 9: the next token stands at position 9
    slot 1   p p c c . . . . . .      length 4
    slot 2   p p p p d d d . . .      length 7

Shapes: c slots, r rows (slots that take part in a pass), t tokens of the pass, n tokens of each of
some rows, g query heads, k key-value heads, d size of a query, e size of a value.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from dlogp_ray.policies.attend import Softmax, attend_rows
from dlogp_ray.policies.attention import RowPass, visible

_SMALLEST_CAPACITY = 64
"""Tokens of a slot at first; more are made as a text needs them, twice as many at a time."""


class Slots:
    """Keys and values of several texts, for each attention layer of one policy.

    Args:
        count: c, how many texts there can be.

    Attributes:
        lengths: [c], how many tokens of each text have run. What lies beyond is overwritten:
            lowering a length cuts its text back.
    """

    def __init__(self, count: int) -> None:
        """Nothing is allocated before the first pass."""
        self.lengths = np.zeros(count, dtype=np.int64)
        self._capacity = _SMALLEST_CAPACITY
        self._layers: list[tuple[Tensor, Tensor]] = []

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers [c, k, capacity, d] and [c, k, capacity, e] of layer ``index``."""
        if index == len(self._layers):
            shapes = (
                (len(self.lengths), x.shape[0], self._capacity, x.shape[2]) for x in (key, value)
            )
            # Zeros: what no query may see is still multiplied, by 0, and must not be NaN.
            keys, values = (key.new_zeros(shape) for shape in shapes)
            self._layers.append((keys, values))
        return self._layers[index]

    @torch.inference_mode()
    def reserve(self, tokens: int) -> None:
        """Make room for texts of ``tokens`` tokens."""
        if tokens <= self._capacity:
            return
        self._capacity = max(tokens, 2 * self._capacity)
        for index, buffers in enumerate(self._layers):
            larger = [x.new_zeros(*x.shape[:2], self._capacity, x.shape[3]) for x in buffers]
            for old, new in zip(buffers, larger, strict=True):
                new[:, :, : old.shape[2]] = old
            self._layers[index] = (larger[0], larger[1])

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int | None = None) -> None:
        """Let the text of slot ``target`` be that of slot ``source``, or its first tokens."""
        length = int(self.lengths[source]) if length is None else length
        self.lengths[target] = length
        for buffers in self._layers:
            for buffer in buffers:
                buffer[target, :, :length] = buffer[source, :, :length]


class SlotPass(RowPass):
    """The next tokens of some texts: those of the first row, then those of the second, and so on.

    Args:
        slots: Where the texts are.
        rows: [r] slots, each once.
        counts: [r], how many tokens follow in each.
    """

    def __init__(self, slots: Slots, rows: ArrayLike, counts: ArrayLike) -> None:
        """Nothing is computed yet."""
        super().__init__()
        self._slots = slots
        self._rows = np.asarray(rows)
        self._counts = np.asarray(counts)
        starts = np.cumsum(self._counts) - self._counts
        before = np.repeat(slots.lengths[self._rows] - starts, self._counts)
        self._positions = np.arange(len(before)) + before
        slots.reserve(int(self._positions.max()) + 1)
        self._groups = [
            _Alike(slots, self._rows[alike], starts[alike], int(count))
            for count in np.unique(self._counts)
            for alike in (np.flatnonzero(self._counts == count),)
        ]
        self._written: tuple[Tensor, Tensor] | None = None

    def positions(self, device: torch.device) -> Int[Tensor, " t"]:
        """The position of each token in its own text."""
        return torch.from_numpy(self._positions).to(device)

    def attend(
        self,
        query: Float[Tensor, "g t d"],
        key: Float[Tensor, "k t d"],
        value: Float[Tensor, "k t e"],
        pattern: int | None,
        softmax: Softmax,
    ) -> Float[Tensor, "t g e"]:
        """Each token over its text up to itself."""
        keys, values = self._slots.layer(self.next_layer(), key, value)
        if self._written is None:
            rows = torch.from_numpy(np.repeat(self._rows, self._counts)).to(query.device)
            self._written = rows, self.positions(query.device)
        rows, positions = self._written
        keys[rows, :, positions] = key.transpose(0, 1)
        values[rows, :, positions] = value.transpose(0, 1)
        if len(self._groups) == 1:
            return self._groups[0].attend(query, keys, values, pattern, self.patterns, softmax)
        out = query.new_empty(query.shape[1], query.shape[0], value.shape[2])
        for group in self._groups:
            tokens = group.tokens.to(query.device)
            out[tokens] = group.attend(
                query[:, tokens], keys, values, pattern, self.patterns, softmax
            )
        return out

    def finish(self) -> None:
        """The texts have grown."""
        self._slots.lengths[self._rows] += self._counts


class _Alike:
    """Rows with equally many new tokens."""

    def __init__(self, slots: Slots, rows: np.ndarray, starts: np.ndarray, count: int) -> None:
        """As the pass has them."""
        self.tokens = torch.from_numpy((starts[:, None] + np.arange(count)).ravel())
        lengths = slots.lengths[rows]
        self._count = count
        self._seen = int(lengths.max()) + count
        self._positions = torch.from_numpy((lengths[:, None] + np.arange(count)).ravel())
        first = int(rows[0])
        in_a_row = np.array_equal(rows, np.arange(first, first + len(rows)))
        # A slice is a view; an index copies the keys and values of a layer.
        self._where = slice(first, first + len(rows)) if in_a_row else torch.from_numpy(rows)
        self._masks: dict[int | None, Tensor] = {}

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        pattern: int | None,
        patterns: Sequence[Callable[..., Any]],
        softmax: Softmax,
    ) -> Tensor:
        """[g, r·n, d] -> [r·n, g, e]."""
        heads, tokens, _ = query.shape
        count = self._count
        if pattern not in self._masks:
            function = None if pattern is None else patterns[pattern]
            positions = self._positions.to(query.device)
            self._masks[pattern] = visible(function, positions, self._seen).view(
                -1, count, self._seen
            )
        out = attend_rows(
            query.view(heads, -1, count, query.shape[2]).transpose(0, 1),
            keys[self._where, :, : self._seen],
            values[self._where, :, : self._seen],
            self._masks[pattern],
            softmax,
        )
        return out.transpose(1, 2).reshape(tokens, heads, -1)
