"""The content hash: the same for the same rows, another for any others."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlogp_ray.tables.content_hash import content_hash

SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "step": pa.int32(),
        "used": pa.bool_(),
        "logp": pa.list_(pa.float32()),
        "mask": pa.list_(pa.bool_()),
    }
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.none() | st.text("abä€😀", max_size=5),
            "step": st.none() | st.integers(-5, 5),
            "used": st.none() | st.booleans(),
            "logp": st.none() | st.lists(st.none() | st.floats(-9, 0, width=32), max_size=4),
            "mask": st.none() | st.lists(st.booleans(), max_size=4),
        }
    ),
    max_size=8,
)


def table(values: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(values, schema=SCHEMA)


@given(rows, st.integers(0, 8))
def test_chunks_and_slices_do_not_change_it(values: list[dict[str, Any]], cut: int) -> None:
    whole = table(values)
    chunked = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)])
    inner = pa.concat_tables([table(values[:1]), whole, table(values[:1])])
    sliced = inner.slice(len(values[:1]), len(values))
    assert content_hash(chunked) == content_hash(whole)
    assert content_hash(sliced) == content_hash(whole)


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False, "compression": "zstd"}])
@given(values=rows)
def test_encoding_does_not_change_it(options: dict[str, Any], values: list[dict[str, Any]]) -> None:
    sink = io.BytesIO()
    pq.write_table(table(values).replace_schema_metadata({"a": "b"}), sink, **options)
    assert content_hash(pq.read_table(sink)) == content_hash(table(values))


@given(rows, rows)
def test_two_tables_have_one_hash_only_if_they_are_equal(
    a: list[dict[str, Any]], b: list[dict[str, Any]]
) -> None:
    # 0.0 and -0.0 are equal numbers and different bytes, so compare what Python writes of them
    first, second = table(a), table(b)
    same = repr(first.to_pylist()) == repr(second.to_pylist())
    assert (content_hash(first) == content_hash(second)) == same


ROW = {"name": "ab", "step": 1, "used": True, "logp": [-1.0, -2.0], "mask": [True, False]}


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "ac"},
        {"name": ""},
        {"name": None},
        {"step": 0},
        {"step": None},
        {"used": None},
        {"logp": [-1.0, -2.0000002]},  # the neighbouring float32
        {"logp": [-2.0, -1.0]},
        {"logp": [-1.0, None]},
        {"logp": []},
        {"logp": None},
        {"mask": [True, True]},
    ],
)
def test_one_value_changes_it(changed: dict[str, Any]) -> None:
    assert content_hash(table([ROW, ROW | changed])) != content_hash(table([ROW, ROW]))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([{"logp": None}], [{"logp": []}]),
        ([{"name": None}], [{"name": ""}]),
        # the same values in other rows
        ([{"logp": [1.0]}, {"logp": []}], [{"logp": []}, {"logp": [1.0]}]),
        ([{"name": "ab"}, {"name": "c"}], [{"name": "a"}, {"name": "bc"}]),
        ([{"step": 1}, {"step": 2}], [{"step": 2}, {"step": 1}]),
        ([], [{}]),
    ],
)
def test_nulls_boundaries_and_order_count(a: list[Any], b: list[Any]) -> None:
    assert content_hash(table(a)) != content_hash(table(b))


def test_names_and_types_count() -> None:
    columns = [
        {"a": pa.array([1], pa.int32())},
        {"b": pa.array([1], pa.int32())},
        {"a": pa.array([1], pa.int64())},
    ]
    assert len({content_hash(pa.table(column)) for column in columns}) == 3
