"""The mergeable summary: counts worked out by hand, and merging that loses nothing."""

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlogp_ray.analysis.summary import HISTOGRAM_BINS, Summary, TokenSummary, summarise
from dlogp_ray.tables.scores import scores_schema


def make_scores(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of the scores table; delta's length is the response's, KL and JS 0 unless given."""
    filled = []
    for row in rows:
        delta = row.get("delta_logp") or []
        n = len(row.get("response_ids", delta))
        defaults = {
            "policy": "rl",
            "generator": "base",
            "status": "ok",
            "source_file": "f",
            "source_offset": 0,
            "from_text": False,
            "response_ids": [2] * n,
            "response_mask": [True] * n,
            "kl_rl_base": [0.0] * len(delta),
            "js": [0.0] * len(delta),
        }
        filled.append(defaults | row)
    return pa.Table.from_pylist(filled, schema=scores_schema({}))


def test_counts_by_hand() -> None:
    table = make_scores(
        [
            {
                "delta_logp": [0.0, 0.75, -2.5, 8.0],
                "response_mask": [True, True, True, False],  # 8.0 does not count
                "kl_rl_base": [0.0, 0.05, 0.5, 9.0],
                "js": [0.0, 0.005, 0.25, 0.5],
            },
            {"delta_logp": [-0.25]},
        ]
    )
    found = summarise(table).groups["rl"]["base"]
    assert (found.samples, found.tokens) == (2, 4)
    assert found.delta_sum == 0.75 - 2.5 - 0.25  # exact in binary
    assert found.delta_abs_sum == 3.5
    assert (found.raised, found.lowered) == (1, 2)
    # above 0.01 0.05 0.1: all but 0.0; above 0.3 0.5: 0.75 and -2.5; above 1 2: -2.5; above 4: none
    assert found.delta_above == [3, 3, 3, 2, 2, 1, 1, 0]
    # above 1e-4 1e-3 1e-2 0.1
    assert found.kl_rl_base_above == [2, 2, 2, 1]
    assert found.js_above == [2, 2, 1, 1]


def test_a_histogram_bin_is_0_05_nats_and_the_outermost_are_open() -> None:
    values = [-50.0, -10.0, -0.01, 0.0, 0.01, 9.99, 10.0, 50.0]
    found = summarise(make_scores([{"delta_logp": values}])).groups["rl"]["base"].delta_histogram
    filled = {index: count for index, count in enumerate(found) if count}
    # bin k is [-10 + k/20, -10 + (k+1)/20): 0.0 and 0.01 are in 200, -0.01 in 199
    assert filled == {0: 2, 199: 1, 200: 2, HISTOGRAM_BINS - 1: 3}


def test_each_policy_and_generator_has_its_own() -> None:
    table = make_scores(
        [
            {"policy": "a", "delta_logp": [1.0]},
            {"policy": "a", "generator": "rl", "delta_logp": [2.0, 2.0]},
            {"policy": "b", "generator": None, "delta_logp": [4.0]},
        ]
    )
    found = summarise(table)
    sums = {p: {g: s.delta_sum for g, s in groups.items()} for p, groups in found.groups.items()}
    assert sums == {"a": {"base": 1.0, "rl": 4.0}, "b": {"": 4.0}}
    assert (found.rows, found.tokens, found.rejected) == (3, 4, 0)


def test_rejected_rows_are_counted_by_status_and_nowhere_else() -> None:
    empty = {"status": "too_long", "delta_logp": [], "policy": "rl"}
    found = summarise(make_scores([empty, {"delta_logp": [1.0]}, empty | {"status": "no_ids"}]))
    assert found.status == {"too_long": 1, "ok": 1, "no_ids": 1}
    assert (found.rows, found.rejected, found.tokens) == (3, 2, 1)
    assert found.groups["rl"]["base"].samples == 1
    assert summarise(make_scores([empty])).groups == {}


def test_a_policy_alone_has_tokens_and_no_differences() -> None:
    alone = {"response_ids": [2, 3], "delta_logp": None, "kl_rl_base": None, "js": None}
    found = summarise(make_scores([alone | {"response_mask": [True, False]}]))
    assert found.groups["rl"]["base"] == TokenSummary(samples=1, tokens=1)


def test_no_rows() -> None:
    assert summarise(make_scores([])) == Summary()
    assert Summary.merge([]) == Summary()


row = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(["a", "b"]),
        "generator": st.sampled_from(["base", "rl", None]),
        "delta_logp": st.lists(st.floats(-12, 12, width=32), min_size=1, max_size=4),
    }
)


@given(st.lists(row, max_size=12), st.integers(0, 12), st.randoms(use_true_random=False))
def test_parts_merge_to_the_whole_in_any_order(
    rows: list[dict[str, Any]], cut: int, rng: random.Random
) -> None:
    parts = [summarise(make_scores(part)) for part in (rows[:cut], rows[cut:], rows[:0])]
    parts[0].special_tokens, parts[1].special_tokens = {"a": 1, "b": 2}, {"a": 4}
    rng.shuffle(parts)
    merged, whole = Summary.merge(parts), summarise(make_scores(rows))
    whole.special_tokens = {"a": 5, "b": 2}
    # counts are exact; sums of at most 48 numbers up to 12, added in another order, within 1e-12
    merged_sums, whole_sums = take_sums(merged), take_sums(whole)
    assert merged == whole
    assert merged_sums == pytest.approx(whole_sums, abs=1e-9)


def take_sums(summary: Summary) -> dict[str, float]:
    """The floating-point sums, which are set to 0 in the summary."""
    sums = {}
    for policy, generators in summary.groups.items():
        for generator, found in generators.items():
            for name in ("delta_sum", "delta_abs_sum"):
                sums[f"{policy} {generator} {name}"] = getattr(found, name)
                setattr(found, name, 0.0)
    return sums


def test_a_summary_travels_as_json() -> None:
    found = summarise(make_scores([{"delta_logp": [0.1, -3.0]}]))
    assert Summary.model_validate_json(found.model_dump_json()) == found
