"""Random streams: what names them is all that counts."""

import numpy as np
import pytest
from scipy import stats

from dlogp_ray.decoding.streams import Purpose, uniforms


def test_a_stream_is_the_same_each_time_and_a_longer_one_begins_with_the_shorter() -> None:
    first = uniforms(3, "p7", 2, 10)
    assert first.shape == (len(Purpose), 10)
    assert np.array_equal(first, uniforms(3, "p7", 2, 10))
    assert np.array_equal(first, uniforms(3, "p7", 2, 1_000)[:, :10])


@pytest.mark.parametrize(
    ("other", "purpose"),
    [
        ((4, "p7", 2), Purpose.DRAFT),
        ((3, "p8", 2), Purpose.DRAFT),
        ((3, "p7", 1), Purpose.DRAFT),
        ((3, "p7", 2), Purpose.REDRAW),
        ((3, "p7", 2), Purpose.GATE),
        # the parts of a name can't be taken for one another
        ((32, "p7", 2), Purpose.DRAFT),
        ((3, "2/p7", 2), Purpose.DRAFT),
    ],
)
def test_streams_of_another_name_are_independent(
    other: tuple[int, str, int], purpose: Purpose
) -> None:
    one = uniforms(3, "p7", 2, 10_000)[Purpose.DRAFT]
    two = uniforms(*other, 10_000)[purpose]
    # The correlation of independent numbers is normal with 1 / sqrt(n) = 0.01; 5 of those.
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05


def test_numbers_are_uniform() -> None:
    numbers = np.concatenate([uniforms(0, f"p{i}", 0, 100)[Purpose.REDRAW] for i in range(1_000)])
    assert 0 <= numbers.min() <= numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-4


def test_first_numbers_of_many_streams_are_uniform() -> None:
    numbers = [uniforms(seed, "p", 0, 1)[Purpose.DRAFT, 0] for seed in range(10_000)]
    assert stats.kstest(numbers, "uniform").pvalue > 1e-4
