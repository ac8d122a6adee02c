"""Quantiles from counts over the leading bits of each value, by fold, with intervals.

A bin holds the float32 numbers that begin with the same bits: sign, exponent, and the first bits of
the mantissa. A quantile's bin is found exactly, so that a quantile is right to half of the bin's
width, a share of its value; counts follow from the rows alone, in whatever order they are added.

The interval of a quantile is that of the share of tokens below it, read back through the counts
(Woodruff, 1952): the share's error is clustered by sample (``folds``), and the bins of both ends
belong to it as wholes. The standard error is what such an interval would come from: its half over
Student's t.

Shapes: k folds, b bins, q quantiles, t tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from jaxtyping import Float, Int, Integer

from dlogp_ray.analysis.estimates import t975
from dlogp_ray.analysis.sparsity.folds import FOLDS
from dlogp_ray.analysis.sparsity.ratios import Figure
from dlogp_ray.tables import float_order

FINE, COARSE = 16, 13
"""Leading bits: a quantile is right to 2⁻⁸ or 2⁻⁵ of its value (0.4 % or 3.1 %)."""
_BITS = 32
_LEAST_NORMAL = float(np.finfo(np.float32).tiny)
"""1.2e-38: what is nearer to 0 counts as 0."""


@dataclass(frozen=True)
class Quantiles:
    """Tokens of one statistic by bin; NaN is left out.

    Attributes:
        bits: Leading bits that tokens of a bin share.
        bins: [b] ascending; those that have tokens.
        counts: [k, b] tokens.
        least: The smallest value; inf without any.
        greatest: The largest; -inf without any.
        samples: How many the tokens come from.
    """

    bits: int
    bins: Integer[np.ndarray, " b"]
    counts: Integer[np.ndarray, "k b"]
    least: float
    greatest: float
    samples: int

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, " t"],
        folds: Int[np.ndarray, " t"],
        samples: int,
        bits: int = FINE,
    ) -> Self:
        """Of some tokens."""
        values = values.astype(np.float32)
        values[np.abs(values) < _LEAST_NORMAL] = 0.0  # −0 too
        there = ~np.isnan(values)
        values, fold = values[there], folds[there].astype(np.uint32)
        keys = (float_order.places(values) >> (_BITS - bits)) * np.uint32(FOLDS) + fold
        keys, tokens = np.unique(keys, return_counts=True)
        bins, at = np.unique(keys // FOLDS, return_inverse=True)
        counts = np.zeros((FOLDS, len(bins)), np.int64)
        counts[keys % FOLDS, at] = tokens
        least, greatest = values.min(initial=np.inf), values.max(initial=-np.inf)
        return cls(bits, bins, _packed(counts), float(least), float(greatest), samples)

    def __add__(self, other: Self) -> Self:
        """Of both."""
        bins = np.union1d(self.bins, other.bins)
        counts = np.zeros((FOLDS, len(bins)), np.int64)
        for part in (self, other):
            counts[:, np.searchsorted(bins, part.bins)] += part.counts
        return type(self)(
            self.bits,
            bins,
            _packed(counts),
            min(self.least, other.least),
            max(self.greatest, other.greatest),
            self.samples + other.samples,
        )

    def figures(self, at: Sequence[float]) -> list[Figure]:
        """The quantiles at some shares, such as 0.5 for the median.

        Of the values in ascending order the first at which the share of tokens is reached; at 0
        and 1 the least and the greatest value, exactly and without an error.
        """
        tokens = self.counts.sum(1)
        n, folds = int(tokens.sum()), int(np.count_nonzero(tokens))
        if not n:
            return [Figure(None, None, None, None, 0, self.samples) for _ in at]
        rows = []
        for share in at:
            low = high = se = None
            if share in (0.0, 1.0):
                value = self.greatest if share else self.least
            else:
                value = self._number(self._bin(share), 0.5)
            if 0 < share < 1 and folds > 1 and self.samples > 1:
                t = t975(folds - 1)
                error = t * self._share_error(share)
                low = self._number(self._bin(share - error), 0.0)
                high = self._number(self._bin(share + error), 1.0)
                se = (high - low) / (2 * t)
            rows.append(Figure(value, se, low, high, n, self.samples))
        return rows

    @cached_property
    def _ends(self) -> Integer[np.ndarray, " b"]:
        """Tokens up to the end of each bin."""
        ends: np.ndarray = np.cumsum(self.counts.sum(0))
        return ends

    def _bin(self, share: float) -> int:
        """Where the bin lies at which the share of tokens is reached."""
        wanted = min(max(share, 0.0), 1.0) * self._ends[-1]
        return int(np.searchsorted(self._ends, wanted))

    def _number(self, at: int, part: float) -> float:
        """The number so far into a bin, 0.0 for its least one and 1.0 for its greatest.

        None beyond the smallest and the largest value; the bin of 0 has no other.
        """
        width = 1 << (_BITS - self.bits)
        place = (int(self.bins[at]) * width) + int(part * (width - 1))
        ends = float_order.places(np.array([self.least, self.greatest]))
        number = float(float_order.numbers(np.clip(np.array([place], np.uint32), *ends))[0])
        return number if abs(number) >= _LEAST_NORMAL else 0.0

    def _share_error(self, share: float) -> float:
        """The standard error of the share of tokens below a quantile, clustered by sample.

        The tokens of the quantile's own bin count in part, so that they are the share in all.
        """
        at, n = self._bin(share), self.counts.sum(1)
        inside = self.counts.sum(0)[at]
        part = (share * n.sum() - (self._ends[at] - inside)) / inside
        below = self.counts[:, :at].sum(1) + part * self.counts[:, at]
        k = np.count_nonzero(n)
        squares = float(((below - share * n) ** 2).sum())
        return math.sqrt(k / (k - 1) * squares) / float(n.sum())


def _packed(counts: Int[np.ndarray, "k b"]) -> Integer[np.ndarray, "k b"]:
    """In half of the memory, where that holds them."""
    return counts.astype(np.uint32) if counts.max(initial=0) < 2**32 else counts
