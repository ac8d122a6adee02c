"""Raw rows of a part of a corpus file, each with where it stands in the file.

A row that can't even be parsed comes as a ``RowRejected`` in its place; the others go on.
"""

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.errors import RowRejected

RawRow = tuple[int, dict[str, Any] | RowRejected]
"""Offset in the file (bytes of a JSONL, rows of a Parquet file) and the row."""

_PARQUET_BATCH_ROWS = 1_024


def read_jsonl(uri: str, start: int, stop: int | None, compression: str | None) -> Iterator[RawRow]:
    """Rows of the lines whose first byte lies in [start, stop); blank lines are no rows.

    Args:
        uri: The file.
        start: Byte offset, in the uncompressed file.
        stop: The same, or None for the end of the file.
        compression: As Arrow names it; a compressed file is read from its beginning.
    """
    filesystem, path = store.open_store(uri)
    with filesystem.open(path, "rb") as raw:
        file: Any = raw
        if compression is not None:
            file = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw), compression))
        if start > 0:
            # From the byte before: if it ends a line, this range's first line begins at start.
            file.seek(start - 1)
            offset = start - 1 + len(file.readline())
        else:
            offset = 0
        while stop is None or offset < stop:
            line = file.readline()
            if not line:
                return
            if line.strip():
                yield offset, _parse(line)
            offset += len(line)


def _parse(line: bytes) -> dict[str, Any] | RowRejected:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return RowRejected("malformed", f"not a line of JSON: {error}")
    if not isinstance(row, dict):
        return RowRejected("malformed", f"expected a JSON object, got {type(row).__name__}")
    return row


def read_parquet(
    uri: str, start: int = 0, stop: int = sys.maxsize, columns: set[str] | None = None
) -> Iterator[RawRow]:
    """Rows [start, stop) of a Parquet file; of its columns only those named, if they are there."""
    filesystem, path = store.open_store(uri)
    with filesystem.open(path, "rb") as raw:
        file = pq.ParquetFile(raw, page_checksum_verification=True)
        present = [name for name in file.schema_arrow.names if columns is None or name in columns]
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first < stop and first + rows > start:
                yield from _read_row_group(file, group, first, start, stop, present)
            first += rows


def _read_row_group(
    file: pq.ParquetFile, group: int, first: int, start: int, stop: int, columns: list[str]
) -> Iterator[RawRow]:
    offset = first
    batches = file.iter_batches(_PARQUET_BATCH_ROWS, row_groups=[group], columns=columns)
    for batch in batches:
        low, high = max(start - offset, 0), min(stop - offset, len(batch))
        if low < high:
            for index, row in enumerate(batch.slice(low, high - low).to_pylist()):
                yield offset + low + index, row
        offset += len(batch)
        if offset >= stop:
            return
