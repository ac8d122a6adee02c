"""Packing: every sequence once, within the budget, with little padding."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dlogp_ray.scoring.packing import token_budget_batches

lengths = st.lists(st.integers(1, 200), max_size=60)
budgets = st.integers(1, 500)


@settings(deadline=None)
@given(lengths, budgets)
def test_every_index_is_in_exactly_one_batch(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


@settings(deadline=None)
@given(lengths, budgets)
def test_the_padded_size_is_within_the_budget_unless_alone(lengths: list[int], budget: int) -> None:
    for batch in token_budget_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@settings(deadline=None)
@given(lengths, budgets)
def test_longest_first_and_the_same_every_time(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    order = [lengths[index] for batch in batches for index in batch]
    assert order == sorted(lengths, reverse=True)
    assert batches == token_budget_batches(tuple(lengths), budget)


def test_a_worked_example() -> None:
    # Longest first: 7, 5, 5, 3, 2 under 10. 2 x 7 > 10, so 7 is alone; 2 x 5 = 10 fits and
    # 3 x 5 does not; 3 and 2 make 2 x 3 = 6. Equal lengths keep their order (1 before 3).
    assert token_budget_batches([2, 5, 7, 5, 3], 10) == [[2], [1, 3], [4, 0]]
    # One token less, and 2 x 5 does not fit: 5 | 5 | 3, 2.
    assert token_budget_batches([2, 5, 7, 5, 3], 9) == [[2], [1], [3], [4, 0]]


def test_neighbours_in_length_share_a_batch() -> None:
    # The lengths 1..64 in any order: a batch of k neighbours L, L-1, ... pads 0 + 1 + ... + (k-1)
    # tokens, the least that k different lengths can.
    lengths = list(range(1, 65))
    random.Random(0).shuffle(lengths)
    for batch in token_budget_batches(lengths, 128):
        chosen = [lengths[index] for index in batch]
        padding = len(batch) * max(chosen) - sum(chosen)
        assert padding == len(batch) * (len(batch) - 1) // 2
