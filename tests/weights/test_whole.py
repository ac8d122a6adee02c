"""Quantiles and groups' means of a whole table, from parts in any order."""

import math

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dlogp_ray.weights.whole import Counts, GroupSums, quantile, quantile_upper

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    parts=st.lists(st.lists(FLOATS, max_size=8), min_size=1, max_size=5).filter(any),
    rho=st.sampled_from([0.01, 0.2, 0.5, 1.0]),
)
def test_the_quantile_keeps_what_the_interpolated_one_keeps(
    parts: list[list[float]], rho: float
) -> None:
    arrays = [np.asarray(part, np.float32) for part in parts]
    counts = Counts.merge([Counts.of(part) for part in reversed(arrays)])
    upper, rank = quantile_upper(counts, rho)
    lower = Counts.merge([Counts.of(part, upper) for part in arrays])
    found = quantile(upper, lower, rank)
    values = np.sort(np.concatenate(arrays))
    assert found in values
    # The place of the interpolated quantile: what is at or above it is kept.
    place = (len(values) - 1) * (1 - rho)
    assert found == values[math.ceil(place - 1e-9)]


def test_the_sum_of_no_counts_is_none() -> None:
    assert len(Counts.merge([])) == 0
    assert len(GroupSums.merge([]).table) == 0


def test_moments_of_groups_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 0.05, 500).astype(np.float32)
    names = np.array([f"g{number}" for number in rng.integers(0, 40, 500)])
    names[:2] = "alone", "alone too"
    values[names == "g3"] = 0.7  # no spread
    cut = [slice(0, 100), slice(100, 499), slice(499, 500)]
    sums = GroupSums.merge(
        GroupSums.merge([GroupSums.of(pa.array(names[part]), values[part])]) for part in cut[::-1]
    )
    mean, std = sums.moments(pa.array(names))
    for name in set(names.tolist()):
        some = values[names == name].astype(np.float64)
        expected = some.std(ddof=1) if len(some) > 1 else 0.0
        np.testing.assert_allclose(mean[names == name], some.mean(), rtol=1e-12)
        if name in ("alone", "alone too", "g3"):
            assert set(std[names == name]) == {0.0}
        else:
            # Σx² - n·mean² loses (mean/std)² = 100 units in the last place.
            np.testing.assert_allclose(std[names == name], expected, rtol=1e-12)
