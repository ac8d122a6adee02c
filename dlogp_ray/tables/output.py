"""A query's rows: the first as a table for people, or all as CSV, JSON lines or Parquet."""

import csv
import io
import json
import re
from contextlib import redirect_stdout
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

_BATCH = 10_000
_SHOWN_ROWS = 200
_LINES_BEFORE = 2
"""That DuckDB writes before a query to show its rows, and counts in an error."""


def shown_rows(relation: Any, width: int) -> str:
    """The first rows as DuckDB draws them, and how many there are.

    Args:
        relation: As ``Run.sql`` gives it.
        width: Columns of the table, which is cut there.
    """
    try:
        with redirect_stdout(io.StringIO()) as shown:
            relation.show(max_rows=_SHOWN_ROWS, max_width=width)
    except duckdb.Error as error:
        said = re.sub(
            r"(?m)^LINE (\d+):", lambda m: f"LINE {int(m[1]) - _LINES_BEFORE}:", str(error)
        )
        raise type(error)(said) from None
    # It draws no more than a part of many rows, and has not counted the others.
    return re.sub(r"\? rows(\s+)\(>(\d+) rows,\s+", r"more than \2 rows\1(", shown.getvalue())


def write_rows(relation: Any, form: str, sink: IO[bytes]) -> None:
    """Write all rows of a DuckDB relation.

    Args:
        relation: As ``Run.sql`` gives it.
        form: csv, json or parquet. In CSV, lists and structures are JSON; JSON is a line a row.
        sink: Where to.
    """
    reader: pa.RecordBatchReader = relation.to_arrow_reader(_BATCH)
    {"csv": _csv, "json": _json, "parquet": _parquet}[form](reader, sink)


def _csv(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    class Encoded:
        """What the csv module writes to."""

        def write(self, text: str) -> int:
            return sink.write(text.encode())

    writer = csv.writer(Encoded())
    writer.writerow(reader.schema.names)
    for batch in reader:
        for row in batch.to_pylist():
            writer.writerow(
                json.dumps(v, default=str) if isinstance(v, list | dict) else v
                for v in row.values()
            )


def _json(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    for batch in reader:
        for row in batch.to_pylist():
            sink.write(json.dumps(row, default=str).encode() + b"\n")


def _parquet(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    with pq.ParquetWriter(sink, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)
