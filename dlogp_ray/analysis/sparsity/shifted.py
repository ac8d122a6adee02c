"""What each vocabulary id adds to Δlog p: the most shifted tokens.

Shapes: i ids.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Shifted:
    """Ids with their tokens' totals.

    Attributes:
        ids: [i] ascending.
        counts: [i] tokens of each.
        raised: [i] Σ Δlog p over its tokens with Δlog p > 0, nats.
        lowered: [i] the same with Δlog p < 0, which is negative.
    """

    ids: Int[np.ndarray, " i"]
    counts: Int[np.ndarray, " i"]
    raised: Float[np.ndarray, " i"]
    lowered: Float[np.ndarray, " i"]

    @classmethod
    def of(cls, ids: Int[np.ndarray, " t"], delta: Float[np.ndarray, " t"]) -> Self:
        """Of some tokens."""
        vocabulary, which = np.unique(ids, return_inverse=True)
        raised = np.bincount(which, np.maximum(delta, 0), len(vocabulary))
        lowered = np.bincount(which, np.minimum(delta, 0), len(vocabulary))
        return cls(vocabulary, np.bincount(which, minlength=len(vocabulary)), raised, lowered)

    def __add__(self, other: Self) -> Self:
        """Of both."""
        ids, which = np.unique(np.concatenate([self.ids, other.ids]), return_inverse=True)

        def total(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            sums = np.bincount(which, np.concatenate([mine, theirs]), len(ids))
            return sums.astype(mine.dtype)

        return type(self)(
            ids,
            total(self.counts, other.counts),
            total(self.raised, other.raised),
            total(self.lowered, other.lowered),
        )

    def most(self, count: int) -> Int[np.ndarray, " n"]:
        """Places of the ids with the largest |Σ Δlog p| of either sign, largest first."""
        return np.argsort(-np.maximum(self.raised, -self.lowered), kind="stable")[:count]
