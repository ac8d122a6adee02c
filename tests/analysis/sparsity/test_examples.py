"""What the report shows: the most shifted and some by chance, of every group, in any order."""

import numpy as np
import pyarrow as pa
import pytest
from score_tables import score_rows

from dlogp_ray.analysis.sparsity.examples import (
    MOST_TOKENS,
    PER_GROUP,
    TOKENS_PER_GROUP,
    Examples,
)


def rows() -> pa.Table:
    some = [score_rows(90, seed=1), score_rows(60, seed=2, generator="rl")]
    return pa.concat_tables([*some, score_rows(5, seed=3, generator=None)])


def sums(table: pa.Table) -> dict[str, float]:
    return {
        row["sample_id"]: sum(
            abs(d) for d, c in zip(row["delta_logp"], row["response_mask"], strict=True) if c
        )
        for row in table.to_pylist()
        if any(row["response_mask"])
    }


def test_the_most_shifted_of_each_group_stay() -> None:
    table = rows()
    found = Examples.of(table).rows
    assert found is not None
    for generator in ("base", "rl", None):
        mine = pa.Table.from_pylist([r for r in table.to_pylist() if r["generator"] == generator])
        by_sum = sums(mine)
        most = sorted(by_sum, key=lambda name: -by_sum[name])[:PER_GROUP]
        moved = [
            (row["sample_id"], -row["rank"])
            for row in found.to_pylist()
            if (row["kind"], row["generator"]) == ("moved", generator)
        ]
        assert [name for name, _ in moved] == most
        assert [value for _, value in moved] == pytest.approx([by_sum[name] for name in most])


def test_parts_add_up_in_any_order() -> None:
    table = rows()
    whole = Examples.of(table).rows
    parts = [Examples.of(table[a:b]) for a, b in ((0, 7), (7, 100), (100, 155))]
    assert whole is not None
    for some in (parts, parts[::-1]):
        merged = Examples.merge(some).rows
        assert merged is not None
        assert merged.select(["kind", "sample_id", "js"]).equals(
            whole.select(["kind", "sample_id", "js"])
        )


def test_as_many_as_there_is_room_for_evenly() -> None:
    shown = Examples.of(rows()).shown(30)
    names = list(zip(*(shown[n].to_pylist() for n in ("policy", "sample_id")), strict=True))
    assert len(set(names)) == len(names) == 30
    counts = dict(
        zip(
            *np.unique(shown["generator"].fill_null("").to_pylist(), return_counts=True),
            strict=True,
        )
    )
    # The five of the third group, and the others as many of each, but for who came twice.
    assert counts[""] == 5
    assert abs(counts["base"] - counts["rl"]) <= 3
    assert Examples().shown(5).num_rows == 0


def test_long_responses_are_fewer_in_any_order() -> None:
    table = score_rows(60, seed=4, length=8_000)
    found = Examples.of(table).rows
    assert found is not None
    for kind in ("moved", "random"):
        lengths = [
            len(row["response_ids"])
            for row in sorted(found.to_pylist(), key=lambda row: row["rank"])
            if row["kind"] == kind
        ]
        # Until there are enough: without the last one there were not.
        assert sum(lengths[:-1]) < TOKENS_PER_GROUP <= sum(lengths)
        assert len(lengths) < PER_GROUP
    merged = Examples.merge([Examples.of(table[30:]), Examples.of(table[:30])]).rows
    assert merged is not None
    assert merged["sample_id"].to_pylist() == found["sample_id"].to_pylist()
    shown = Examples.of(table).shown(200)
    assert 1 < len(shown) < 60
    assert sum(map(len, shown["response_ids"].to_pylist())) <= MOST_TOKENS
    long = score_rows(1, seed=7, length=2 * MOST_TOKENS)
    assert len(long["js"][0]) > MOST_TOKENS
    assert len(Examples.of(long).shown(5)) == 1
