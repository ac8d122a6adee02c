"""The last linear layer of a policy: hidden states -> float32 logits, tile by tile.

Shapes: n rows, h hidden size, v vocabulary (rows of the lm head).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dlogp_ray.policies.kernels import bfloat16_kernels

TILE_BYTES = 8 * 2**20
"""Of the lm head, so much of a float32 copy exists at a time, where one is made."""


@dataclass(frozen=True)
class LmHead:
    """The last linear layer with what the architecture does to its output.

    Attributes:
        weight: [v, h], in the policy's dtype or float32.
        bias: [v], or None.
        scale: The logits are multiplied by it (Cohere, Granite).
        softcap: Logits become ``softcap * tanh(logits / softcap)`` (Gemma), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def width(self) -> int:
        """v: how many ids get a probability."""
        return int(self.weight.shape[0])

    def logits(
        self,
        hidden: Float[Tensor, "n h"],
        out: Float[Tensor, "n v"] | None = None,
        *,
        compiled: bool = False,
    ) -> Float[Tensor, "n v"]:
        """Logits in float32, whatever the policy's dtype.

        The product of bfloat16 numbers is exact in float32 and is accumulated there; logits
        rounded to bfloat16 would be wrong by hundredths of a nat.

        Args:
            hidden: In the policy's dtype or float32.
            out: Where to write them, or None for a new tensor.
            compiled: Whether a kernel may be built for it, where torch has none.
        """
        if out is None:
            out = torch.empty(len(hidden), self.width, device=hidden.device)
        own = hidden.dtype == self.weight.dtype
        if self.weight.dtype == torch.float32:
            torch.mm(hidden.float(), self.weight.T, out=out)
        elif own and self.weight.device.type == "cuda":
            torch.mm(hidden, self.weight.T, out_dtype=torch.float32, out=out)
        elif compiled and self._has_kernel(hidden):
            bfloat16_kernels().product(hidden.contiguous(), self.weight, out)
        else:
            rows = hidden.float()
            with _exact_products_of(self.weight.dtype, hidden.dtype):
                step = max(1, TILE_BYTES // (4 * self.weight.shape[1]))
                # One tile's memory, used again: a new tile would be made before the last is freed.
                shape = min(step, self.width), self.weight.shape[1]
                memory = torch.empty(shape, device=self.weight.device)
                for start in range(0, self.width, step):
                    part = self.weight[start : start + step]
                    tile = memory[: len(part)].copy_(part)
                    torch.mm(rows, tile.T, out=out[:, start : start + step])
        if self.bias is not None:
            out.add_(self.bias)
        return self.finish(out)

    def _has_kernel(self, hidden: Tensor) -> bool:
        fits = hidden.dtype == self.weight.dtype == torch.bfloat16 and hidden.shape[1] % 2 == 0
        return fits and self.weight.is_contiguous() and bfloat16_kernels() is not None

    def finish(self, raw: Float[Tensor, "*rows v"]) -> Float[Tensor, "*rows v"]:
        """Apply scale and soft cap, in place."""
        if self.scale != 1.0:
            raw.mul_(self.scale)
        if self.softcap is not None:
            raw.div_(self.softcap).tanh_().mul_(self.softcap)
        return raw


@contextmanager
def _exact_products_of(*dtypes: torch.dtype) -> Iterator[None]:
    """On a CPU: let float32 products of numbers that came from bfloat16 use its multipliers.

    Nothing is rounded, because the numbers fit, and sums stay float32. Measured on two cores with
    512-bit bfloat16 instructions: 160 against 90 GFLOP/s.
    """
    if set(dtypes) != {torch.bfloat16}:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
