"""A model run in another dtype than its weights are held in, a decoder layer at a time.

Float32 of weights that were saved in half precision is what rounding is measured against, and twice
the policy's memory; so a layer is cast when its forward begins, and is itself again when it ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding, Module
from torch.overrides import TorchFunctionMode

from dlogp_ray.policies.layers import layer_lists

_Held = list[tuple[Tensor, Tensor]]
"""Weights and buffers with what they held before they were cast."""


@contextmanager
def in_dtype(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the model computes in ``dtype``, as if all of it were cast.

    Each decoder layer and the lm head are cast while they run, what is around them throughout; of
    embeddings, which may be the largest of all weights, only the rows that are looked up.

    Args:
        model: An ``AutoModelForCausalLM`` of any dtype. It must not run compiled.
        dtype: Of everything from the embeddings to the logits.
    """
    parts = {layer for layers in layer_lists(model) for layer in layers}
    parts.add(model.get_output_embeddings())
    inside = {module for part in parts for module in part.modules()}
    around: _Held = []
    held: list[_Held] = [around]
    handles = []
    for part in parts:
        held.append([])
        handles += _cast_while_it_runs(part, dtype, held[-1])
    try:
        _cast([module for module in model.modules() if module not in inside], dtype, around)
        with _CastRows(dtype):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for one in held:
            _restore(one)


def _cast_while_it_runs(part: Module, dtype: torch.dtype, held: _Held) -> list[Any]:
    """The handles of two hooks."""
    modules = list(part.modules())
    return [
        part.register_forward_pre_hook(lambda *_: _cast(modules, dtype, held)),
        part.register_forward_hook(lambda *_: _restore(held), always_call=True),
    ]


class _CastRows(TorchFunctionMode):
    """Inside, what is looked up in a table comes out in a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        return out.to(self._dtype) if func is torch.nn.functional.embedding else out


def _cast(modules: list[Module], dtype: torch.dtype, held: _Held) -> None:
    """Cast weights and buffers in place, but for tables."""
    with torch.inference_mode(False), torch.no_grad():
        for module in modules:
            weights = () if isinstance(module, Embedding) else module._parameters.values()
            for tensor in (*weights, *module._buffers.values()):
                if tensor is not None and tensor.is_floating_point() and tensor.dtype != dtype:
                    held.append((tensor, tensor.data))
                    tensor.data = tensor.data.to(dtype)


def _restore(held: _Held) -> None:
    with torch.inference_mode(False), torch.no_grad():
        while held:
            tensor, before = held.pop()
            tensor.data = before
