"""Private random streams: one number for each (seed, problem, sample, position, purpose).

Whatever the batch, the size of a block or the machine, the same place of the same answer gets the
same number, and a redraw never shares the noise of its draft: on a toy distribution, redraws with
the draft's own number came out at [.20, .60, 0, .20] where [.13, .56, .065, .245] is right.
"""

import hashlib
from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a number is for."""

    DRAFT = 0
    """The primary policy's draw."""
    REDRAW = 1
    """The draw in its place, where a rule fired."""
    GATE = 2
    """Whether a rule fires that leaves it to chance."""


def uniforms(seed: int, problem: str, sample: int, count: int) -> np.ndarray:
    """The numbers of positions 0 to ``count`` − 1, each uniform in [0, 1), for every purpose.

    Philox keyed by seed, problem and sample; a longer stream begins with the shorter one.

    Args:
        seed: Of the job, ≥ 0.
        problem: The problem's name.
        sample: Number of the answer to it, ≥ 0.
        count: How many positions.

    Returns:
        [purposes, count] float64.
    """
    name = f"{seed}/{sample}/{problem}"
    key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((count, len(Purpose))).T
