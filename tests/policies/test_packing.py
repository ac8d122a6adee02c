"""Packing: every sequence once, within the budget, with little padding."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dlogp_ray.policies.packing import TokenSequence, plan_passes, token_budget_batches

lengths = st.lists(st.integers(1, 200), max_size=60)
budgets = st.integers(1, 500)


@given(lengths, budgets)
def test_every_index_is_in_exactly_one_batch(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


@given(lengths, budgets)
def test_the_padded_size_is_within_the_budget_unless_alone(lengths: list[int], budget: int) -> None:
    for batch in token_budget_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


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


sequences = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 60)), max_size=15
)


def make_sequences(drawn: list[tuple[int, int, int]]) -> list[TokenSequence]:
    """Prompts of 40 equal tokens at most, so that many are shared; responses tell all tokens."""
    return [
        TokenSequence(np.full(prompt, kind, dtype=np.int32), np.arange(n * 100, n * 100 + response))
        for n, (kind, prompt, response) in enumerate(drawn, start=1)
    ]


@given(sequences, st.integers(1, 150))
def test_every_response_token_is_predicted_once_from_its_own_text(
    drawn: list[tuple[int, int, int]], budget: int
) -> None:
    texts = make_sequences(drawn)
    # response token at each place -> the text before it, told by the texts themselves
    before = [
        [*text.prompt_ids.tolist(), *text.response_ids[:at].tolist()]
        for text in texts
        for at in range(len(text.response_ids))
    ]
    seen: dict[int, list[int]] = {}
    past: list[int] = []
    for one in plan_passes(texts, budget):
        past = past[: one.past_length]
        assert len(past) == one.past_length
        visible = {}
        for segment in one.segments:
            prefix = one.ids[slice(*segment.prefix)].tolist()
            own = one.ids[segment.start : segment.stop].tolist()
            for at in range(len(own)):
                visible[segment.start + at] = [*past, *prefix, *own[: at + 1]]
        if one.keep:
            past = past + one.ids.tolist()
            assert len(past) <= one.capacity
        for row, place in zip(one.rows, one.where, strict=True):
            assert int(place) not in seen
            seen[int(place)] = visible[int(row)]
    assert seen == dict(enumerate(before))


@given(sequences, st.integers(1, 150))
def test_no_pass_is_larger_than_the_budget(drawn: list[tuple[int, int, int]], budget: int) -> None:
    assert all(len(one.ids) <= budget for one in plan_passes(make_sequences(drawn), budget))


def test_a_shared_prompt_runs_once() -> None:
    # 8 responses of 128 tokens on one prompt of 512: 512 + 8 * 127 tokens are fed, not 8 * 639
    texts = [TokenSequence(np.arange(512), np.arange(128) + n) for n in range(8)]
    assert sum(len(one.ids) for one in plan_passes(texts, 4096)) == 512 + 8 * 127
    assert len(plan_passes(texts, 4096)) == 1
    # also where they do not fit into one pass: 512 tokens of prompt, then 4 responses a pass
    passes = plan_passes(texts, 512)
    assert [len(one.ids) for one in passes] == [512, 508, 508]
    assert [one.keep for one in passes] == [True, False, False]


def test_a_long_response_goes_through_in_chunks_after_its_prompt() -> None:
    # prompt 3, response 10 (9 are fed), budget 4: the past grows 3, 7, 11, 12
    passes = plan_passes([TokenSequence(np.arange(3), np.arange(10))], 4)
    assert [(one.past_length, len(one.ids)) for one in passes] == [(0, 3), (3, 4), (7, 4), (11, 1)]
    assert {one.capacity for one in passes} == {12}
    assert [one.where.tolist() for one in passes] == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
