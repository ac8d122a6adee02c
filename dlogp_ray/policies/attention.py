"""Attention over packed sequences, for every model that takes its attention from an interface.

Sequences lie one after another in a single row of tokens, without padding. A segment of it sees
itself causally, before that an earlier segment (a prompt that several responses share, so that it
runs once), and before that what a ``Past`` keeps from earlier passes (so that long texts run in
bounded memory).

    tokens     p p p p | a a a | b b b b b | q q | c c c
    segment    prompt    a       b           q     c
    prefix               prompt  prompt            q

Which positions a token may see, a sliding window for one, stays the model's business: its own mask
function is asked for each segment as if the segment's text stood alone. The layout of the pass is
found through a context variable, because models hand tensors on, and nothing else, to their layers.

Shapes: t packed tokens, g query heads, k key-value heads, q queries and s keys of one segment,
d size of a query, e size of a value.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlogp_ray.policies.attend import attend

IMPLEMENTATION = "dlogp_packed"
"""The name under which transformers knows this attention."""


@dataclass(frozen=True)
class Segment:
    """Tokens ``start`` to ``stop`` of the packed row; before them it sees those of ``prefix``."""

    start: int
    stop: int
    prefix: tuple[int, int] = (0, 0)

    @property
    def prefix_length(self) -> int:
        """Tokens of the prefix."""
        return self.prefix[1] - self.prefix[0]


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


@dataclass
class Layout:
    """One pass over a packed row.

    Attributes:
        segments: In the order of the row.
        past: What every segment sees before all else, or None.
        keep: Whether the pass, then of a single segment, is appended to ``past``.
        compiled: Whether kernels may be built for what torch is slow at.
    """

    segments: Sequence[Segment]
    past: Past | None = None
    keep: bool = False
    compiled: bool = False
    _patterns: list[Callable[..., Any]] = field(default_factory=list)
    _masks: dict[tuple[int, int, int], Tensor | None] = field(default_factory=dict)
    _layers_done: int = 0

    @property
    def past_length(self) -> int:
        """Tokens in ``past``."""
        return self.past.length if self.past else 0

    def positions(self, device: torch.device) -> Tensor:
        """[1, t]: the position of each token in its own text."""
        ranges = [
            torch.arange(s.stop - s.start, device=device) + self.past_length + s.prefix_length
            for s in self.segments
        ]
        return torch.cat(ranges)[None]

    def mask(self, pattern: int, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """[q, s], true where a query may look; None where that is plainly causal."""
        if pattern == _CAUSAL:
            return None
        wanted = (pattern, queries, keys)
        if wanted not in self._masks:
            self._masks[wanted] = _evaluate(self._patterns[pattern], queries, keys, device)
        return self._masks[wanted]

    def add_pattern(self, mask_function: Callable[..., Any]) -> int:
        """Remember a model's mask function; its number is what the model carries to its layers."""
        self._patterns.append(mask_function)
        return len(self._patterns) - 1

    def next_layer(self) -> int:
        """The number of the attention layer that is running."""
        self._layers_done += 1
        return self._layers_done - 1


_CAUSAL = -1
_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def packed(layout: Layout) -> Iterator[None]:
    """Models inside run over this layout."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)
    if layout.keep and layout.past is not None:
        layout.past.length += layout.segments[0].stop


def register() -> str:
    """Make the attention known to transformers; returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    # Unwrapped: compilers can't trace a decorator that checks types, as the tests have it.
    AttentionInterface.register(IMPLEMENTATION, inspect.unwrap(_attention_forward))
    AttentionMaskInterface.register(IMPLEMENTATION, _pattern_of)
    return IMPLEMENTATION


def _pattern_of(*, mask_function: Callable[..., Any], use_vmap: bool = False, **_: Any) -> Tensor:
    """In place of a mask: the number of the mask function, as the only tensor a layer needs.

    On the CPU wherever the model is, so that reading it waits for nothing.
    """
    from transformers.masking_utils import causal_mask_function

    layout = _layout.get()
    if layout is None:
        raise RuntimeError("a packed model was called outside attention.packed()")
    if mask_function is causal_mask_function:
        return torch.tensor(_CAUSAL)
    if use_vmap:
        mask_function = _vectorised(mask_function)
    return torch.tensor(layout.add_pattern(mask_function))


def _vectorised(mask_function: Callable[..., Any]) -> Callable[..., Any]:
    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Any:
        over_keys = torch.vmap(mask_function, in_dims=(None, None, None, 0))
        over_both = torch.vmap(over_keys, in_dims=(None, None, 0, None))
        return over_both(batch.squeeze(), head.squeeze(), query.flatten(), key.flatten())

    return mask


def _evaluate(
    mask_function: Callable[..., Any], queries: int, keys: int, device: torch.device
) -> Tensor | None:
    none = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    query = torch.arange(keys - queries, keys, device=device).view(1, 1, queries, 1)
    key = torch.arange(keys, device=device).view(1, 1, 1, keys)
    mask = mask_function(none, none, query, key)
    mask = mask.expand(1, 1, queries, keys)[0, 0].contiguous()
    causal = key[0, 0] <= query[0, 0]
    return None if torch.equal(mask, causal) else mask


_IGNORED = frozenset(
    # What says again what the mask says, or nothing about the numbers of one forward pass.
    "sliding_window position_ids use_cache cache_position output_attentions output_hidden_states "
    "output_router_logits return_dict position_embeddings logits_to_keep".split()
)


def _attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function that a model's attention layers call: [1, heads, t, d] -> [1, t, heads, e].

    Raises:
        NotImplementedError: The model asks for something that is not known here.
    """
    unknown = [k for k, v in others.items() if v is not None and k not in _IGNORED]
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if unknown or dropout or not causal or attention_mask is None or query.shape[0] != 1:
        raise NotImplementedError(
            f"attention with {', '.join(unknown) or 'another kind of mask'} can't be packed"
        )
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    out = _packed_attention(query, key, value, attention_mask, float(scaling), softcap, s_aux)
    return out, None


@torch.library.custom_op("dlogp_ray::packed_attention", mutates_args=())
def _packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Tensor,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """One operation for a compiler, whatever the layout: [1, g, t, d] -> [1, t, g, e]."""
    layout = _layout.get()
    if layout is None:
        raise RuntimeError("a packed model was called outside attention.packed()")
    q, k, v = query[0], key[0], value[0]
    number = int(pattern)
    past = _past(layout, k, v)
    out = q.new_empty(1, q.shape[1], q.shape[0], v.shape[2])
    for segment in layout.segments:
        own = slice(segment.start, segment.stop)
        prefix = slice(*segment.prefix)
        keys, values = k[:, own], v[:, own]
        if segment.prefix_length:
            keys, values = (torch.cat([x[:, prefix], x[:, own]], 1) for x in (k, v))
        if past is not None:
            keys, values = past if layout.keep else _after(past, keys, values)
        mask = layout.mask(number, own.stop - own.start, keys.shape[1], q.device)
        result = attend(
            q[:, own],
            keys,
            values,
            mask,
            scaling=scaling,
            softcap=softcap,
            sinks=sinks,
            compiled=layout.compiled,
        )
        out[0, own] = result.transpose(0, 1)
    return out


@_packed_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Tensor,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def _past(layout: Layout, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
    """Keys and values up to this pass, or with it where the pass is kept; None without a past."""
    past, index = layout.past, layout.next_layer()
    if past is None:
        return None
    keys, values = past.layer(index, key, value)
    end = past.length
    if layout.keep:
        end += key.shape[1]
        keys[:, past.length : end] = key
        values[:, past.length : end] = value
    return keys[:, :end], values[:, :end]


def _after(past: tuple[Tensor, Tensor], keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([past[0], keys], 1), torch.cat([past[1], values], 1)
