"""Quantiles from KLL sketches (Apache DataSketches), by fold, with intervals.

The interval of a quantile is that of the share of tokens below it, read back through the sketch
(Woodruff, 1952): the share's error is clustered by sample (``folds``), and the sketch's own rank
error is added on both sides. The standard error is what such an interval would come from: its half
over Student's t.

Shapes: q quantiles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from datasketches import kll_floats_sketch
from jaxtyping import Float, Int

from dlogp_ray.analysis.estimates import t975
from dlogp_ray.analysis.sparsity.folds import FOLDS
from dlogp_ray.analysis.sparsity.ratios import Figure

FINE, COARSE = 2_000, 400
"""Sizes of sketches: a rank is right to 0.14 % or 0.68 % of the tokens (99 % of the time), for
about 24 or 5 KB."""


@dataclass(frozen=True)
class Quantiles:
    """Sketches of one statistic.

    Attributes:
        sketches: [k] one a fold.
        samples: How many the tokens come from.
    """

    sketches: tuple[Any, ...]
    samples: int

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, " t"],
        folds: Int[np.ndarray, " t"],
        samples: int,
        size: int = FINE,
    ) -> Self:
        """Of some tokens."""
        order = np.argsort(folds, kind="stable")
        ends = np.cumsum(np.bincount(folds, minlength=FOLDS))
        sketches = []
        for some in np.split(values[order].astype(np.float32), ends[:-1]):
            sketch = kll_floats_sketch(size)
            if len(some):
                sketch.update(some)
            sketches.append(sketch)
        return cls(tuple(sketches), samples)

    def __add__(self, other: Self) -> Self:
        """Of both."""
        both = zip(self.sketches, other.sketches, strict=True)
        return type(self)(tuple(merged(pair) for pair in both), self.samples + other.samples)

    def __getstate__(self) -> dict[str, Any]:
        """Bytes, as other processes take them."""
        return {"sketches": [s.serialize() for s in self.sketches], "samples": self.samples}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The reverse."""
        sketches = tuple(kll_floats_sketch.deserialize(one) for one in state["sketches"])
        object.__setattr__(self, "sketches", sketches)
        object.__setattr__(self, "samples", state["samples"])

    def figures(self, at: Sequence[float]) -> list[Figure]:
        """The quantiles at some shares, such as 0.5 for the median.

        At 0 and 1 they are the least and the largest value, exactly, and have no error.
        """
        whole = merged(self.sketches)
        if whole.is_empty():
            return [Figure(None, None, None, None, 0, self.samples) for _ in at]
        rank_error = whole.normalized_rank_error(False)
        there = [sketch for sketch in self.sketches if not sketch.is_empty()]
        found = []
        for share in at:
            low = high = se = None
            if share in (0.0, 1.0):  # beside its samples of ranks, a sketch keeps both
                value = float(whole.get_max_value() if share else whole.get_min_value())
            else:
                value = float(whole.get_quantile(share))
            if 0 < share < 1 and len(there) > 1 and self.samples > 1:
                t = t975(len(there) - 1)
                error = t * self._share_error(value, there) + rank_error
                low = float(whole.get_quantile(max(0.0, share - error)))
                high = float(whole.get_quantile(min(1.0, share + error)))
                se = (high - low) / (2 * t)
            found.append(Figure(value, se, low, high, whole.n, self.samples))
        return found

    @staticmethod
    def _share_error(value: float, there: Sequence[Any]) -> float:
        """The standard error of the share of tokens below a value, clustered by sample."""
        n = np.array([sketch.n for sketch in there], dtype=np.float64)
        y = n * [sketch.get_rank(value) for sketch in there]
        k = len(there)
        squares = float(((y - y.sum() / n.sum() * n) ** 2).sum())
        return math.sqrt(k / (k - 1) * squares) / float(n.sum())


def merged(sketches: Sequence[Any]) -> Any:
    """One sketch of all."""
    whole = kll_floats_sketch(sketches[0].k)
    for sketch in sketches:
        whole.merge(sketch)
    return whole
