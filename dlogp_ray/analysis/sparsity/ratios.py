"""Ratios of sums over tokens, with standard errors clustered by sample: they add up in any order.

Most figures of a table are R = Σ_i y_i / Σ_i n_i over samples i, such as a share of tokens (y_i the
tokens of sample i that are meant, n_i all of them) or a mean. The tokens of one sample are not
independent of one another, so that the error comes from the samples' residuals:

    se² = G/(G−1) · Σ_i (y_i − R·n_i)² / (Σ_i n_i)²        over the G samples with n_i > 0

(the linearised ratio estimator with the CR1 correction). The squares add up over samples, so that
no sample is looked at twice. Counts are exact up to 2^53.

Beside that, what each figure would be without each fold of samples (``folds``) says how it goes
together with the same figure of another run of the same samples.

Shapes: f figures, s samples, k folds.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from dlogp_ray.analysis.estimates import t975
from dlogp_ray.analysis.sparsity.folds import FOLDS

Key = tuple[str, str, float | None]
"""Of what, which figure, and where on its axis: a threshold, the start of a bin."""


@dataclass(frozen=True)
class Figure:
    """A figure of a table and how sure it is.

    Attributes:
        value: The figure; None where there is nothing that it could be of.
        se: Its standard error; None with a single sample, and where none is known.
        ci_low: The 95 % confidence interval; None where ``se`` is and nothing else gives one.
        ci_high: The same.
        n_tokens: Tokens that it is of.
        n_samples: Samples that they come from.
        without: [k] what it would be without each fold; None for a fold that has no samples, or
            without which nothing is left. None where that is not kept.
    """

    value: float | None
    se: float | None
    ci_low: float | None
    ci_high: float | None
    n_tokens: int
    n_samples: int
    without: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class Part:
    """What samples add to one figure.

    Attributes:
        key: Which.
        y: [s].
        n: [s] at least 0.
        tokens: [s] the tokens of each, where ``n`` counts something else.
    """

    key: Key
    y: Float[np.ndarray, " s"]
    n: Float[np.ndarray, " s"]
    tokens: Float[np.ndarray, " s"] | None = None


@dataclass(frozen=True)
class Ratios:
    """Figures' sums over samples.

    Attributes:
        keys: [f].
        tokens: [f] tokens that each is of.
        samples: [f] G.
        y: [f] Σ y_i.
        n: [f] Σ n_i.
        yy: [f] Σ y_i².
        yn: [f] Σ y_i·n_i.
        nn: [f] Σ n_i².
        fold_y: [f, k] Σ y_i over the samples of each fold; None where folds are not kept.
        fold_n: [f, k] Σ n_i.
    """

    keys: tuple[Key, ...]
    tokens: Int[np.ndarray, " f"]
    samples: Int[np.ndarray, " f"]
    y: Float[np.ndarray, " f"]
    n: Float[np.ndarray, " f"]
    yy: Float[np.ndarray, " f"]
    yn: Float[np.ndarray, " f"]
    nn: Float[np.ndarray, " f"]
    fold_y: Float[np.ndarray, "f k"] | None = None
    fold_n: Float[np.ndarray, "f k"] | None = None

    @classmethod
    def of(cls, parts: Iterable[Part], folds: Int[np.ndarray, " s"] | None = None) -> Self:
        """The sums of some samples.

        Args:
            parts: What they add to each figure.
            folds: Of each; None keeps none.
        """
        parts = list(parts)
        y = np.array([part.y for part in parts], dtype=np.float64)
        n = np.array([part.n for part in parts], dtype=np.float64)
        tokens = np.array([part.n if part.tokens is None else part.tokens for part in parts])
        return cls(
            keys=tuple(part.key for part in parts),
            tokens=tokens.sum(1).round().astype(np.int64),
            samples=np.count_nonzero(n, axis=1),
            y=y.sum(1),
            n=n.sum(1),
            yy=(y * y).sum(1),
            yn=(y * n).sum(1),
            nn=(n * n).sum(1),
            fold_y=None if folds is None else _by_fold(y, folds),
            fold_n=None if folds is None else _by_fold(n, folds),
        )

    def __add__(self, other: Self) -> Self:
        """Of both.

        Raises:
            ValueError: They have other figures.
        """
        if self.keys != other.keys:
            raise ValueError("expected the same figures, got others")
        names = ["tokens", "samples", "y", "n", "yy", "yn", "nn"]
        if self.fold_y is not None:
            names += ["fold_y", "fold_n"]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    def figures(self) -> dict[Key, Figure]:
        """Each R with its clustered error and an interval by Student's t with G − 1 degrees."""
        return {key: self._figure(index) for index, key in enumerate(self.keys)}

    def _figure(self, f: int) -> Figure:
        tokens, samples, n = int(self.tokens[f]), int(self.samples[f]), float(self.n[f])
        if not n:
            return Figure(None, None, None, None, tokens, samples)
        value = float(self.y[f]) / n
        if samples < 2:
            return Figure(value, None, None, None, tokens, samples)
        residuals = float(self.yy[f] - 2 * value * self.yn[f] + value**2 * self.nn[f])
        # Roundings may leave a little less than nothing.
        se = math.sqrt(samples / (samples - 1) * max(0.0, residuals)) / n
        half = t975(samples - 1) * se
        return Figure(value, se, value - half, value + half, tokens, samples, self._without(f))

    def _without(self, f: int) -> tuple[float | None, ...] | None:
        if self.fold_y is None or self.fold_n is None:
            return None
        y, n = self.fold_y[f], self.fold_n[f]
        left, of = y.sum() - y, n.sum() - n
        return tuple(
            a / b if there and b else None
            for a, b, there in zip(left.tolist(), of.tolist(), (n > 0).tolist(), strict=True)
        )


def _by_fold(
    values: Float[np.ndarray, "f s"], folds: Int[np.ndarray, " s"]
) -> Float[np.ndarray, "f k"]:
    return np.stack([values[:, folds == fold].sum(1) for fold in range(FOLDS)], axis=1)
