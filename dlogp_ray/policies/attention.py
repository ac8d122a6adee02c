"""Attention over rows of several texts, for every model that takes its attention from an interface.

A row holds the tokens of several texts one after another, without padding; what each of them sees
is a ``RowPass``'s business (``layout.py``: texts that are scored; ``slots.py``: texts that grow).
Which positions of its own text a token may see, a sliding window for one, stays the model's
business: its own mask function is asked as if the text stood alone. The pass is found through a
context variable, because models hand tensors on, and nothing else, to their layers.

Shapes: t tokens of the row, g query heads, k key-value heads, q queries and s keys, d size of a
query, e size of a value.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlogp_ray.policies.attend import Softmax

IMPLEMENTATION = "dlogp_packed"
"""The name under which transformers knows this attention."""


class RowPass(ABC):
    """One pass of a body over a row of texts.

    Attributes:
        compiled: Whether kernels may be built for what torch is slow at.
        patterns: Mask functions that the model's layers name by their number.
    """

    def __init__(self) -> None:
        """No layer has run."""
        self.compiled = False
        self.patterns: list[Callable[..., Any]] = []
        self._layers_done = 0

    @abstractmethod
    def positions(self, device: torch.device) -> Int[Tensor, " t"]:
        """The position of each token in its own text."""

    @abstractmethod
    def attend(
        self,
        query: Float[Tensor, "g t d"],
        key: Float[Tensor, "k t d"],
        value: Float[Tensor, "k t e"],
        pattern: int | None,
        softmax: Softmax,
    ) -> Float[Tensor, "t g e"]:
        """The attention of one layer; ``pattern`` is its mask function, None for causal."""

    @abstractmethod
    def finish(self) -> None:
        """The body has run."""

    def next_layer(self) -> int:
        """The number of the attention layer that is running."""
        self._layers_done += 1
        return self._layers_done - 1


_CAUSAL = -1
_row_pass: ContextVar[RowPass | None] = ContextVar("row_pass", default=None)


@contextmanager
def packed(row_pass: RowPass) -> Iterator[None]:
    """Models inside run this pass."""
    token = _row_pass.set(row_pass)
    try:
        yield
    finally:
        _row_pass.reset(token)
    row_pass.finish()


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

    row_pass = _running()
    if mask_function is causal_mask_function:
        return torch.tensor(_CAUSAL)
    row_pass.patterns.append(_vectorised(mask_function) if use_vmap else mask_function)
    return torch.tensor(len(row_pass.patterns) - 1)


def _running() -> RowPass:
    row_pass = _row_pass.get()
    if row_pass is None:
        raise RuntimeError("a packed model was called outside attention.packed()")
    return row_pass


def _vectorised(mask_function: Callable[..., Any]) -> Callable[..., Any]:
    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Any:
        over_keys = torch.vmap(mask_function, in_dims=(None, None, None, 0))
        over_both = torch.vmap(over_keys, in_dims=(None, None, 0, None))
        return over_both(batch.squeeze(), head.squeeze(), query.flatten(), key.flatten())

    return mask


def visible(
    mask_function: Callable[..., Any] | None, positions: Int[Tensor, " q"], keys: int
) -> Bool[Tensor, "q s"]:
    """Which of the first ``keys`` positions of its text a query at each of ``positions`` may see.

    Args:
        mask_function: A model's own, or None for causal.
        positions: Of the queries.
        keys: s.
    """
    key = torch.arange(keys, device=positions.device)
    if mask_function is None:
        return key <= positions[:, None]
    none = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=positions.device)
    mask = mask_function(none, none, positions.view(1, 1, -1, 1), key.view(1, 1, 1, -1))
    return mask.expand(1, 1, len(positions), keys)[0, 0].contiguous()  # type: ignore[no-any-return]


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
    number = int(pattern)
    out = _running().attend(
        query[0],
        key[0],
        value[0],
        None if number == _CAUSAL else number,
        Softmax(scaling, softcap, sinks),
    )
    return out[None]


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
