"""How fast matrix products are on this machine by dtype, and which dtype follows from that."""

import statistics
import time
from collections.abc import Callable
from functools import cache

import torch

_SIZE = 1_024
_ENOUGH_S = 0.5
"""A processor without instructions for bfloat16 took 2.3 s for one product (80 x float32)."""


def fast_dtype(saved: str, device: str) -> str:
    """``saved``, or float32 where products in it take longer than in float32."""
    if saved == "float32":
        return saved
    own, single = (_product_s(name, device) for name in (saved, "float32"))
    return saved if own <= single else "float32"


def choose_dtype(asked: str, saved: str, device: str) -> str:
    """What a config's ``dtype`` comes to on such a device, for weights saved in ``saved``."""
    return fast_dtype(saved, device) if asked == "auto" else asked


def float32_slowdown(dtype: str, device: str) -> float:
    """How many times as long products in float32 take as in a dtype; 1 where they do not."""
    return max(1.0, _product_s("float32", device) / _product_s(dtype, device))


@cache
def _product_s(dtype: str, device: str) -> float:
    values = torch.ones(_SIZE, _SIZE, dtype=getattr(torch, dtype), device=device)
    return median_s(lambda: values @ values, device)


def median_s(work: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Median seconds of ``work`` after one call that is not counted, unless that takes long."""
    seconds: list[float] = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > _ENOUGH_S:
            break
    return statistics.median(seconds[1:] or seconds)
