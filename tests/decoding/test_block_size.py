"""How many tokens to draft: against the best k of known costs."""

import numpy as np
import pytest

from dlogp_ray.decoding.block_size import LARGEST, BlockSize, kept_tokens


def test_kept_tokens_by_hand() -> None:
    sizes, rates = np.array([3, 7, 7]), np.array([0.5, 0.0, 1.0])
    # 1 + ½ + ¼; never replaced: all; always: one
    assert kept_tokens(sizes, rates) == pytest.approx([1.75, 7, 1])


def after(blocks: int, rate: float, size: BlockSize) -> BlockSize:
    """So many blocks were done, in which a check takes a draft's time and a tenth of it a token."""
    for _ in range(blocks):
        k = size.next(*TEXTS, more=True)
        replaced = round(1_000 * rate)
        size.record(
            k,
            draft_s=float(k),
            check_s=0.9 + 0.1 * k,
            rest_s=0.05,
            written=1_000,
            replaced=replaced,
        )
    return size


def block_s(k: int) -> float:
    return 0.95 + 1.1 * k


TEXTS = np.zeros(8, int), np.zeros(8, int), np.full(8, 10_000)
"""Answers of which nothing is known."""
SIZES = range(1, LARGEST + 1)


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.05, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("more", [False, True])
def test_the_smallest_size_that_is_nearly_the_best_for_known_costs_is_found(
    rate: float, more: bool
) -> None:
    size = after(200, rate, BlockSize())
    speeds = {k: sum((1 - rate) ** i for i in range(k)) / block_s(k) for k in SIZES}
    best = max(speeds.values())
    assert size.next(*TEXTS, more=more) == min(k for k, v in speeds.items() if v > 0.98 * best)


def test_a_text_that_is_replaced_most_decides_when_nothing_else_waits() -> None:
    size = after(200, 0.05, BlockSize())
    written, replaced = np.full(8, 100_000), np.full(8, 1_000)
    replaced[3] = 50_000  # half of its tokens, of the others' one in a hundred
    alone = {k: (2 - 0.5 ** (k - 1)) / block_s(k) for k in SIZES}
    nearly = [k for k, v in alone.items() if v > 0.98 * max(alone.values())]
    assert size.next(written, replaced, TEXTS[2], more=False) == nearly[0]
    assert size.next(written, replaced, TEXTS[2], more=True) > 2 * nearly[0]


def test_no_more_is_drafted_than_answers_may_have() -> None:
    size = after(200, 0.0, BlockSize())
    assert size.next(*TEXTS[:2], np.full(8, 3), more=True) == 3


def test_a_rate_that_changes_is_followed() -> None:
    size = after(200, 0.5, after(200, 0.0, BlockSize()))
    assert size.next(*TEXTS, more=True) <= 2


def test_a_fixed_size_stays() -> None:
    size = BlockSize(5)
    size.record(5, draft_s=1.0, check_s=1.0, rest_s=0.0, written=100, replaced=100)
    assert size.next(*TEXTS, more=True) == 5
