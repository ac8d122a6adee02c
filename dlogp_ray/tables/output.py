"""A query's rows as CSV, JSON lines or Parquet, a batch at a time."""

import csv
import json
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

_BATCH = 10_000


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
