"""Types of carried columns: read off the corpus, or refused with the reason."""

import datetime
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl

from dlogp_ray.corpus.carry import carry_types
from dlogp_ray.corpus.files import CorpusFile, list_corpus
from dlogp_ray.errors import Refused

VALUES: dict[str, Any] = {
    "flag": True,
    "count": 3,
    "share": 0.5,
    "source": "web",
    "tags": ["a"],
    "meta": {"k": 1},
}
EXPECTED = {
    "flag": "bool",
    "count": "int64",
    "share": "float64",
    "source": "string",
    "tags": "string",
    "meta": "string",
}


def jsonl(folder: Path, *rows: dict[str, Any] | str) -> CorpusFile:
    return list_corpus([str(write_jsonl(folder / "c.jsonl", list(rows)))])[0]


def parquet(folder: Path, table: pa.Table) -> CorpusFile:
    pq.write_table(table, folder / "c.parquet")
    return list_corpus([str(folder / "c.parquet")])[0]


def test_types_are_read_off_jsonl_rows(tmp_path: Path) -> None:
    # Nulls, absent values and lines that are no rows say nothing about a type.
    file = jsonl(tmp_path, "not json", dict.fromkeys(VALUES), {}, VALUES)
    assert carry_types(list(VALUES), file) == EXPECTED


def test_types_are_read_off_a_parquet_schema(tmp_path: Path) -> None:
    file = parquet(tmp_path, pa.Table.from_pylist([VALUES]))
    assert carry_types(list(VALUES), file) == EXPECTED


def test_parquet_s_other_widths_and_encodings_of_the_same_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "i": pa.array([1], pa.uint8()),
            "f": pa.array([1], pa.float32()),
            "s": pa.array(["a"], pa.large_string()),
            "d": pa.array(["a"]).dictionary_encode(),
            "n": pa.nulls(1),
        }
    )
    expected = {"i": "int64", "f": "float64", "s": "string", "d": "string", "n": "string"}
    assert carry_types(list(expected), parquet(tmp_path, table)) == expected


@pytest.mark.parametrize(
    "value", [datetime.datetime(2026, 1, 1), decimal.Decimal("0.1"), b"bytes"], ids=type
)
def test_a_parquet_type_that_no_row_could_bring_is_refused(tmp_path: Path, value: Any) -> None:
    file = parquet(tmp_path, pa.Table.from_pylist([{"when": value}]))
    with pytest.raises(Refused, match=r"'when' is a (timestamp|decimal|binary).*cast it"):
        carry_types(["when"], file)


def test_integers_among_floats_are_floats(tmp_path: Path) -> None:
    assert carry_types(["x"], jsonl(tmp_path, {"x": 1}, {"x": 0.5})) == {"x": "float64"}


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [(1, "a", "int, str"), (True, 1, "bool, int"), (0.5, [], "float, list")],
)
def test_values_of_several_types_are_refused(
    tmp_path: Path, first: Any, second: Any, named: str
) -> None:
    with pytest.raises(Refused, match=f"'x' holds values of several types.*{named}"):
        carry_types(["x"], jsonl(tmp_path, {"x": first}, {"x": second}))


def test_a_given_type_asks_no_file(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"x": 1}, {"x": "a"})
    assert carry_types({"x": "string", "absent": "bool"}, file) == {"x": "string", "absent": "bool"}


def test_no_columns_no_types(tmp_path: Path) -> None:
    assert carry_types((), jsonl(tmp_path, {"x": 1})) == {}


def test_a_column_that_is_not_there_is_refused_with_what_to_write(tmp_path: Path) -> None:
    for file in (jsonl(tmp_path, {"x": 1}), parquet(tmp_path, pa.table({"x": [1]}))):
        with pytest.raises(Refused, match=r"no column 'y'.*carry: \{y: string \| int64"):
            carry_types(["y"], file)


@pytest.mark.parametrize("name", ["delta_logp", "response_ids", "status", "prompt_ids"])
def test_a_name_that_the_table_uses_is_refused(tmp_path: Path, name: str) -> None:
    # prompt_ids are not in the scores, but they are in a unit's checked rows.
    for carry in ([name], {name: "string"}):
        with pytest.raises(Refused, match=f"column '{name}' of its own"):
            carry_types(carry, jsonl(tmp_path, {name: "a"}))


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl.gz"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"neither of the two" * 10)
    with pytest.raises(Refused, match=name):
        carry_types(["x"], list_corpus([str(tmp_path / name)])[0])
