"""Errors of figures that no ratio gives (quantiles, concentration, deciles), clustered by sample.

Samples are dealt into folds by a hash of their ids, which is the same wherever a sample lies. A
figure is computed of all of them, and its error from what it would be without each fold in turn
(the delete-a-group jackknife; whole samples go, so that it is clustered by sample):

    se² = (K−1)/K · Σ_k (f_(−k) − mean f_(−·))²        over the K folds that have samples

Shapes: k folds.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int

FOLDS = 16


def folds_of(sample_ids: Iterable[str]) -> Int[np.ndarray, " s"]:
    """The fold of each sample."""
    return np.array([zlib.crc32(name.encode()) % FOLDS for name in sample_ids], dtype=np.int64)


def without_each(
    figure: Callable[[np.ndarray], float], occupied: Int[np.ndarray, " k"]
) -> list[float]:
    """[k] a figure without each fold in turn.

    Args:
        figure: The figure of the folds that are given, by their numbers.
        occupied: The folds that have samples.
    """
    return [figure(np.delete(occupied, index)) for index in range(len(occupied))]


def jackknife_error(without: Sequence[float]) -> float | None:
    """The standard error of a figure, of what it is without each fold; None with fewer than two."""
    k = len(without)
    if k < 2:
        return None
    values = np.array(without)
    return math.sqrt((k - 1) / k * float(((values - values.mean()) ** 2).sum()))
