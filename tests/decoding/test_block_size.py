"""How many tokens to draft: against the best k of known costs."""

import pytest

from dlogp_ray.decoding.block_size import LARGEST, BlockSize, kept_tokens


def test_kept_tokens_by_hand() -> None:
    # 1 + ½ + ¼; never replaced: all; always: one
    assert kept_tokens(3, 0.5) == pytest.approx(1.75)
    assert kept_tokens(7, 0.0) == 7
    assert kept_tokens(7, 1.0) == 1


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.05, 0.1, 0.4, 1.0])
def test_the_smallest_size_that_is_nearly_the_best_for_known_costs_is_found(rate: float) -> None:
    """A block takes 0.5 + 1.1 k: checking costs half a draft, and a tenth a token."""
    size = BlockSize()
    for _ in range(200):
        k = size.next()
        size.record(k, 0.5 + 1.1 * k, 1_000, round(1_000 * rate))
    speeds = {k: kept_tokens(k, rate) / (0.5 + 1.1 * k) for k in range(1, LARGEST + 1)}
    assert size.next() == min(k for k, v in speeds.items() if v >= 0.95 * max(speeds.values()))


def test_a_rate_that_changes_is_followed() -> None:
    size = BlockSize()
    for rate in (0.0, 0.5):
        for _ in range(200):
            k = size.next()
            size.record(k, 0.5 + 1.1 * k, 1_000, round(1_000 * rate))
    assert size.next() <= 2


def test_a_fixed_size_stays() -> None:
    size = BlockSize(5)
    size.record(5, 1.0, 100, 100)
    assert size.next() == 5
