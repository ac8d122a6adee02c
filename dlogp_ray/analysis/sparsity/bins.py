"""Counts and sums of tokens in fixed bins, by fold: what concentration and deciles are made of.

Bins are narrow (1 % of their value), so that within one of them tokens count as equal: a token's
place among all is right to the share of tokens in its bin.

Shapes: k folds, b bins, m sums.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from dlogp_ray.analysis.sparsity.folds import FOLDS

SMALLEST, LARGEST, COUNT = 1e-8, 1e2, 2_400
"""Bins of a magnitude in nats: 0.96 % wide, the outermost open."""
EDGES = np.geomspace(SMALLEST, LARGEST, COUNT - 1)


def bin_of(magnitudes: Float[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
    """The bin of each magnitude: 0 below ``SMALLEST``, ``COUNT`` − 1 from ``LARGEST`` on."""
    with np.errstate(divide="ignore"):
        # A log p may lie a rounding above 0, and its surprisal below.
        places = (
            np.log(np.maximum(magnitudes, 0.0) / SMALLEST)
            / np.log(LARGEST / SMALLEST)
            * (COUNT - 2)
        )
    bins: np.ndarray = np.clip(np.floor(places) + 1, 0, COUNT - 1).astype(np.int64)
    return bins


@dataclass(frozen=True)
class Bins:
    """Tokens by bin of a magnitude.

    Attributes:
        counts: [k, b].
        sums: [m, k, b] Σ of some values over the tokens of each bin.
    """

    counts: Int[np.ndarray, "k b"]
    sums: Float[np.ndarray, "m k b"]

    @classmethod
    def of(
        cls,
        magnitudes: Float[np.ndarray, " t"],
        values: tuple[Float[np.ndarray, " t"], ...],
        folds: Int[np.ndarray, " t"],
    ) -> Self:
        """Of some tokens."""
        at, size = folds * COUNT + bin_of(magnitudes), FOLDS * COUNT
        counts = np.bincount(at, minlength=size).reshape(FOLDS, COUNT)
        sums = [np.bincount(at, weights, size).reshape(FOLDS, COUNT) for weights in values]
        return cls(counts, np.array(sums))

    def __add__(self, other: Self) -> Self:
        """Of both."""
        return type(self)(self.counts + other.counts, self.sums + other.sums)

    @property
    def occupied(self) -> Int[np.ndarray, " k"]:
        """The folds that have tokens."""
        return np.flatnonzero(self.counts.any(1))

    def of_the_first(
        self, share: float, folds: Int[np.ndarray, " k"], which: int, *, largest: bool
    ) -> float:
        """Σ of a value over this share of the tokens, those with the largest magnitudes or least.

        A bin that lies on the boundary counts in part.
        """
        counts, sums = self.counts[folds].sum(0), self.sums[which, folds].sum(0)
        if largest:
            counts, sums = counts[::-1], sums[::-1]
        ends = np.cumsum(counts)
        wanted = share * ends[-1]
        taken = np.clip((wanted - (ends - counts)) / np.maximum(counts, 1), 0.0, 1.0)
        return float(taken @ sums)


def gini(counts: Int[np.ndarray, " b"], sums: Float[np.ndarray, " b"]) -> float:
    """The Gini coefficient of magnitudes: 0 where all are equal, near 1 where one has all.

    1 − Σ_b (c_b/N)·(S_b + S_{b−1})/S over bins from the least on, S_b the running sum.
    """
    running = np.cumsum(sums)
    before = running - sums
    return float(1 - (counts / counts.sum()) @ (running + before) / running[-1])
