"""Errors of figures that no ratio gives (quantiles, concentration, deciles), clustered by sample.

Samples are dealt into folds by a hash of their ids, which is the same wherever a sample lies. A
figure is computed of all of them, and its error from what it would be without each fold in turn
(the delete-a-group jackknife; whole samples go, so that it is clustered by sample):

    se² = (K−1)/K · Σ_k (f_(−k) − mean f_(−·))²        over the K folds that have samples

Shapes: k folds.
"""

import math
import zlib
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Int

FOLDS = 16


def folds_of(sample_ids: Iterable[str]) -> Int[np.ndarray, " s"]:
    """The fold of each sample."""
    return np.array([zlib.crc32(name.encode()) % FOLDS for name in sample_ids], dtype=np.int64)


def jackknife(
    figure: Callable[[np.ndarray], float], occupied: Int[np.ndarray, " k"]
) -> tuple[float, float | None]:
    """A figure of all folds, and its standard error.

    Args:
        figure: The figure of the folds that are given, by their numbers.
        occupied: The folds that have samples.

    Returns:
        The error is None with fewer than two folds.
    """
    value, k = figure(occupied), len(occupied)
    if k < 2:
        return value, None
    without = np.array([figure(np.delete(occupied, index)) for index in range(k)])
    squares = float(((without - without.mean()) ** 2).sum())
    return value, math.sqrt((k - 1) / k * squares)
