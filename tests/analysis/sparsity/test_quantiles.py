"""Quantiles against NumPy's over nasty numbers; counts that add up the same in any order."""

import pickle
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlogp_ray.analysis.estimates import t975
from dlogp_ray.analysis.sparsity.folds import FOLDS
from dlogp_ray.analysis.sparsity.quantiles import COARSE, FINE, Quantiles

SHARES = (0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)
BOUNDS = {FINE: 2**-8, COARSE: 2**-5}
"""Half of a bin: of 128 or 16 to a power of two, whose least number is the power itself."""
LEAST_NORMAL = 2.0**-126
N = 20_000


def nasty() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    heavy = rng.standard_cauchy(N)
    return {
        "mostly zeros": np.where(rng.random(N) < 0.8, 0.0, rng.normal(size=N)),
        "zeros of both signs": np.where(rng.random(N) < 0.5, -0.0, 0.0),
        "heavy tails": heavy,
        "all negative": -np.abs(heavy),
        "of every size": np.exp(rng.uniform(np.log(1e-45), np.log(3e38), N))
        * rng.choice([-1, 1], N),
        "denormal": rng.integers(1, 2**23, N) * 2.0**-149,
        "denormal of both signs": rng.integers(-(2**10), 2**10, N) * 2.0**-149,
        "tiny beside huge": np.where(rng.random(N) < 0.5, 1e-38, 3e38) * rng.normal(1, 0.01, N),
        "ties": rng.choice([-2.0, 0.1, 0.1, 0.69314718, 7.0], N),
        "one number": np.full(N, 0.3),
        "one token": np.array([-0.7]),
        "two tokens": np.array([1e-3, 5.0]),
        "powers of two": 2.0 ** rng.integers(-40, 5, N),
        "narrow": rng.normal(1.0, 1e-4, N),
        "infinite ends": np.concatenate([rng.normal(size=N), [np.inf] * 9, [-np.inf] * 9]),
    }


def counted(values: np.ndarray, bits: int = FINE, seed: int = 0) -> Quantiles:
    folds = np.random.default_rng(seed).integers(0, FOLDS, len(values))
    return Quantiles.of(values, folds, len(values), bits)


def right(values: np.ndarray, share: float) -> float:
    """The first of the sorted float32 numbers at which the share is reached."""
    return float(np.quantile(values.astype(np.float32), share, method="inverted_cdf"))


@pytest.mark.parametrize("bits", [FINE, COARSE])
@pytest.mark.parametrize("kind", nasty())
def test_a_quantile_is_right_to_a_share_of_its_value(kind: str, bits: int) -> None:
    values = nasty()[kind]
    figures = counted(values, bits).figures(SHARES)
    for share, figure in zip(SHARES, figures, strict=True):
        exact = right(values, share)
        assert figure.n_tokens == len(values)
        if abs(exact) < LEAST_NORMAL:
            assert figure.value == 0.0
        elif share in (0.0, 1.0) or np.isinf(exact):
            assert figure.value == exact
        else:
            assert abs(figure.value - exact) <= BOUNDS[bits] * abs(exact)
        if figure.ci_low is not None and abs(exact) >= LEAST_NORMAL:
            assert figure.ci_low <= exact <= figure.ci_high
            assert figure.ci_low <= figure.value <= figure.ci_high
    found = [figure.value for figure in figures]
    assert found == sorted(found)


def test_zeros_and_a_number_by_itself_come_out_exactly() -> None:
    (zero,) = counted(np.array([0.0, -0.0, 0.0, -1.0, 1.0])).figures([0.5])
    assert str(zero.value) == "0.0"
    (one,) = counted(np.full(100, 0.3)).figures([0.5])
    assert one.value == np.float32(0.3)
    assert (one.ci_low, one.ci_high, one.se) == (one.value, one.value, 0.0)


def test_what_is_not_a_number_is_left_out() -> None:
    values = np.array([np.nan, 3.0, -np.nan, 1.0, 2.0])
    figures = counted(values).figures([0.0, 0.5, 1.0])
    assert [figure.n_tokens for figure in figures] == [3, 3, 3]
    assert [figure.value for figure in figures] == pytest.approx([1.0, 2.0, 3.0], rel=2**-8)
    nothing = counted(np.array([np.nan])) + counted(np.array([]))
    assert [f.value for f in nothing.figures([0.0, 0.5])] == [None, None]
    assert (nothing + counted(np.array([5.0]))).figures([0.0])[0].value == 5.0


FLOATS = st.floats(width=32, allow_infinity=False, allow_nan=False)


@given(
    parts=st.lists(st.lists(FLOATS, max_size=30), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_counts_are_the_same_in_any_order_and_any_parts(
    parts: list[list[float]], order: Any
) -> None:
    arrays = [np.array(part, np.float64) for part in parts]
    folds = [np.arange(len(part)) * 7 % FOLDS for part in arrays]
    some = [Quantiles.of(v, f, len(v)) for v, f in zip(arrays, folds, strict=True)]
    shuffled = order.sample(some, len(some))
    whole = Quantiles.of(np.concatenate(arrays), np.concatenate(folds), sum(map(len, arrays)))
    for one in (reduce(add, some), pickle.loads(pickle.dumps(reduce(add, shuffled)))):
        assert np.array_equal(one.bins, whole.bins)
        assert np.array_equal(one.counts, whole.counts)
        assert one.figures(SHARES) == whole.figures(SHARES)


def test_an_interval_is_that_of_the_share_below() -> None:
    """By hand: shares below the median by fold, clustered, read back from the sorted values."""
    rng = np.random.default_rng(1)
    folds = rng.integers(0, FOLDS, N)
    values = rng.normal(size=FOLDS)[folds] * 0.3 + rng.normal(5, 1, N)  # each fold has its own mean
    (figure,) = Quantiles.of(values, folds, N).figures([0.5])
    below = values <= right(values, 0.5)
    residuals = [(below[folds == k] - 0.5).sum() for k in range(FOLDS)]
    error = np.sqrt(FOLDS / (FOLDS - 1) * np.square(residuals).sum()) / N
    t = t975(FOLDS - 1)
    low, high = (right(values, 0.5 + sign * t * error) for sign in (-1, 1))
    # A bin is 2^-7 wide at most; the share's own error changes by the quantile's bin, 1 % of it.
    assert figure.ci_low == pytest.approx(low, rel=2**-7 + 0.002)
    assert figure.ci_high == pytest.approx(high, rel=2**-7 + 0.002)
    assert figure.ci_low < low
    assert figure.ci_high > high
    assert figure.se == (figure.ci_high - figure.ci_low) / (2 * t)


def test_more_tokens_than_32_bits_count() -> None:
    one = counted(np.array([1.0, 2.0]))
    for _ in range(33):
        one += one
    (median,) = one.figures([0.5])
    assert (median.n_tokens, median.value) == (2**34, pytest.approx(1.0, rel=2**-8))
