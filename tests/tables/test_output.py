"""A query's rows in every form hold what the relation holds, over more than one batch."""

import csv
import io
import json
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from dlogp_ray.tables.output import write_rows

N = 25_000
QUERY = f"""SELECT i, i / 4 AS x, [i, i + 1] AS two, 'é,"' || i AS text, nullif(i, 3) AS some
            FROM range({N}) t(i)"""
# Row 3 by hand.
THIRD = {"i": 3, "x": 0.75, "two": [3, 4], "text": 'é,"3', "some": None}


def written(form: str) -> bytes:
    sink = io.BytesIO()
    write_rows(duckdb.connect().sql(QUERY), form, sink)
    return sink.getvalue()


def test_parquet() -> None:
    table = pq.read_table(io.BytesIO(written("parquet")))
    assert len(table) == N
    assert table.slice(3, 1).to_pylist() == [THIRD]


def test_json_lines() -> None:
    rows = [json.loads(line) for line in written("json").splitlines()]
    assert len(rows) == N
    assert rows[3] == THIRD


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv").decode())))
    assert len(rows) == N
    third: dict[str, Any] = rows[3]
    assert third == {"i": "3", "x": "0.75", "two": "[3, 4]", "text": 'é,"3', "some": ""}


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_no_rows(form: str) -> None:
    sink = io.BytesIO()
    write_rows(duckdb.connect().sql("SELECT 1 AS a WHERE false"), form, sink)
    content = sink.getvalue()
    if form == "parquet":
        assert pq.read_table(io.BytesIO(content)).column_names == ["a"]
    else:
        assert content.decode().strip() == ("a" if form == "csv" else "")
