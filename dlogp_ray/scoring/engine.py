"""How this machine scores fastest: chosen by measurement, recorded with the run, kept when resumed.

Other dtypes and compiled layers round differently, so that a run that changed its engine half-way
would show differences that are none of the policies'.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

COMPILING_FROM_S = 120.0
"""Less work than this for one actor is not worth trying to compile (5 to 60 s)."""
TRIAL_SHARE = 1 / 200
"""What trying other numbers of threads may take of an actor's tokens: about twice this share of the
time where the job then compiles, for the trial does not."""
ACTOR_BYTES = 2**30
"""What an actor takes beside its policies."""


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


def same_numbers(one: Engine, other: Engine) -> bool:
    """Whether both score alike: all but what was measured of them is the same."""
    return replace(one, tokens_per_s={}) == replace(other, tokens_per_s={})


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
