"""How this machine scores fastest: chosen by measurement, recorded with the run, kept when resumed.

Other dtypes and compiled layers round differently, so that a run that changed its engine half-way
would show differences that are none of the policies'.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

TOKEN_BUDGET = {"cpu": 2_048, "cuda": 16_384}
"""On a CPU the activations of 2,048 tokens stay in its last-level cache."""
COMPILING_FROM_S = 120.0
"""Less work than this for one actor is not worth trying to compile (5 to 60 s)."""
TRIAL_SHARE = 1 / 200
"""What trying other numbers of threads may take of an actor's tokens: about twice this share of the
time where the job then compiles, for the trial does not."""
ACTOR_BYTES = 2**30
"""What an actor takes beside its policies."""
_SIZE = 1_024


@dataclass(frozen=True)
class Engine:
    """How all actors of a run score.

    Attributes:
        dtype: Policy -> dtype of its weights and hidden states.
        token_budget: Tokens of one forward pass.
        compiled: Whether layers and statistics are compiled.
        threads: CPU threads of an actor; how many they are changes how products are rounded.
        tokens_per_s: What one actor reached with it and with what was tried beside it.
    """

    dtype: Mapping[str, str]
    token_budget: int
    compiled: bool
    threads: int = 1
    tokens_per_s: Mapping[str, float] = field(default_factory=dict)


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


def thread_choices(cpus: int, memory_bytes: float, policies_bytes: int) -> list[int]:
    """Threads of an actor that are worth a trial on a node: as few as possible, and all.

    As few as leave memory for the policies of as many actors as there is room for on the CPUs.
    """
    room = memory_bytes / (policies_bytes + ACTOR_BYTES)
    few = next((n for n in range(1, cpus) if cpus // n <= room), cpus)
    return sorted({few, cpus})


def compiling_pays(
    tokens: int, eager_tokens_per_s: float, compiled_tokens_per_s: float, compile_s: float
) -> bool:
    """Whether an actor that has ``tokens`` to score ends sooner if it compiles first."""
    return compile_s + tokens / compiled_tokens_per_s < tokens / eager_tokens_per_s


def _product_s(dtype: str, device: str) -> float:
    values = torch.ones(_SIZE, _SIZE, dtype=getattr(torch, dtype), device=device)
    return median_s(lambda: values @ values, device)


def median_s(work: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Median seconds of ``work`` after one call that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
