"""A model run in another dtype than its weights are held in, a decoder layer at a time.

Float32 of weights that were saved in half precision is what rounding is measured against, and twice
the policy's memory; so a layer is cast when its forward begins, and is itself again when it ends.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding, Module
from torch.overrides import TorchFunctionMode

from dlogp_ray.policies.layers import layer_lists


@contextmanager
def in_dtype(model: Any, dtype: torch.dtype, *, head: bool = False) -> Iterator[None]:
    """Inside, a model's body computes in ``dtype``, as if all of it were cast.

    Each decoder layer is cast while it runs, and what is around them throughout; of embeddings,
    which may be the largest of all weights, only the rows that are looked up (in any model).

    Args:
        model: An ``AutoModelForCausalLM`` of any dtype. What of it is compiled runs uncompiled.
        dtype: Of everything from the embeddings to the last hidden states.
        head: Whether the lm head is cast as well, throughout.
    """
    layers = {layer for stack in layer_lists(model) for layer in stack}
    apart = layers if head else layers | {model.get_output_embeddings()}
    inside = {module for apart_module in apart for module in apart_module.modules()}
    tables = _tables(model)
    around = _Cast((m for m in model.modules() if m not in inside | tables), dtype)
    casts = [around]
    handles = []
    for layer in layers:
        casts.append(cast := _Cast((m for m in layer.modules() if m not in tables), dtype))
        handles.append(layer.register_forward_pre_hook(cast.begin))
        handles.append(layer.register_forward_hook(cast.end, always_call=True))
    try:
        around.begin()
        with _CastRows(dtype), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for cast in casts:
            cast.end()


def _tables(model: Module) -> set[Module]:
    """Embeddings, but for those that peft makes other tables of, as a whole, at every forward."""
    adapted = {
        module
        for wrapper in model.modules()
        if type(wrapper).__module__.startswith("peft.")
        for module in wrapper.modules()
    }
    return {m for m in model.modules() if isinstance(m, Embedding) and m not in adapted}


class _Cast:
    """Weights and buffers of some modules themselves, which are cast in place for a while."""

    def __init__(self, modules: Iterable[Module], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._tensors = [
            tensor
            for module in modules
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None and tensor.is_floating_point()
        ]
        self._held: list[tuple[Tensor, Tensor]] = []

    def begin(self, *_: Any) -> None:
        """Cast what is not in the dtype already."""
        with torch.inference_mode(False), torch.no_grad():
            for tensor in self._tensors:
                if tensor.dtype != self._dtype:
                    self._held.append((tensor, tensor.data))
                    tensor.data = tensor.data.to(self._dtype)

    def end(self, *_: Any) -> None:
        """Put back what was there."""
        with torch.inference_mode(False), torch.no_grad():
            while self._held:
                tensor, before = self._held.pop()
                tensor.data = before


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


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 products of float32 numbers, in convolutions on a GPU as well."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
