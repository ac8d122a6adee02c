"""Raw rows of a part of a corpus file, each with where it stands in the file.

A row that can't even be parsed comes as a ``RowRejected`` in its place; the others go on. A file
that is another one than was listed ends in ``InputChanged``, whatever was read of it.
"""

import io
import json
import pickle
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.amounts import amount
from dlogp_ray.config.run import MAX_ROW_BYTES
from dlogp_ray.errors import InputChanged, Refused, RowRejected
from dlogp_ray.status import Status

RawRow = tuple[int, dict[str, Any] | RowRejected]
"""Offset in the file (bytes of a JSONL, rows of a Parquet file) and the row."""

_PARQUET_BATCH_ROWS = 1_024
_PARQUET_BATCH_BYTES = 32 * 2**20
"""Of rows in memory at once, about, where that is less; as Python's objects, eight times that."""
_OFFSET_BYTES = 4
_VALUE_BYTES = 4
"""The least that a value takes in memory."""
_SKIPPED_BYTES = 2**20
_BUFFER_BYTES = 16 * 2**10


@contextmanager
def open_file(uri: str, version: store.Entry) -> Iterator[Any]:
    """A corpus file, of the version that was listed.

    Raises:
        InputChanged: It is another one, or gone.
    """
    try:
        with store.opened(uri, version) as file:
            yield file
    except store.Changed as error:
        raise InputChanged(
            f"corpus_changed: {error}. Put it back as it was (with its time, on a disk) and give "
            "the same command, or score what is there now under another run_id"
        ) from None


def read_jsonl(
    uri: str,
    version: store.Entry,
    start: int,
    stop: int | None,
    compression: str | None,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> Iterator[RawRow]:
    """Rows of the lines whose first byte lies in [start, stop); blank lines are no rows.

    Args:
        uri: The file.
        version: Of it, as it was listed.
        start: Byte offset, in the uncompressed file.
        stop: The same, or None for the end of the file.
        compression: As Arrow names it; a compressed file is read from its beginning.
        max_row_bytes: A longer line is rejected.

    Raises:
        InputChanged: The file is another one.
    """
    with open_file(uri, version) as raw:
        if compression is not None:
            raw = pa.CompressedInputStream(pa.PythonFile(raw), compression)
        file = io.BufferedReader(raw, _BUFFER_BYTES)  # fsspec's files read no line up to a length
        if start > 0:
            # From the byte before: if it ends a line, this range's first line begins at start.
            file.seek(start - 1)
            offset = start - 1 + _rest_of_line(file)
        else:
            offset = 0
        while stop is None or offset < stop:
            line = file.readline(max_row_bytes + 1)
            if not line:
                return
            if len(line) > max_row_bytes and not line.endswith(b"\n"):
                # First of all: who has seen enough need not wait for the rest.
                yield offset, _too_large("its line is longer", max_row_bytes)
                offset += len(line) + _rest_of_line(file)
                continue
            if line.strip():
                yield offset, _parse(line)
            offset += len(line)


def _rest_of_line(file: Any) -> int:
    """Skip it; its bytes."""
    skipped = 0
    while part := file.readline(_SKIPPED_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _too_large(what: str, max_row_bytes: int) -> RowRejected:
    return RowRejected(
        Status.TOO_LARGE,
        f"{what}; expected at most {amount(max_row_bytes, 'byte')} (max_row_bytes)",
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):  # else the last one counts, without a word
        seen = set[str]()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{name!r} stands there twice")
    return made


def _parse(line: bytes) -> dict[str, Any] | RowRejected:
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object)
    except json.JSONDecodeError as error:  # whose text counts lines within the line
        if line.strip() == b"[":
            return RowRejected(
                Status.MALFORMED,
                "not a line of JSON: a list begins; `jq -c '.[]'` makes a line of each of its rows",
            )
        where = f"character {error.pos + 1}"
        return RowRejected(Status.MALFORMED, f"not a line of JSON: {error.msg} at {where}")
    except (ValueError, RecursionError) as error:
        said = "it is a Parquet file; call it .parquet" if line.startswith(b"PAR1") else error
        return RowRejected(Status.MALFORMED, f"not a line of JSON: {said}")
    if not isinstance(row, dict):
        return RowRejected(Status.MALFORMED, f"expected a JSON object, got {type(row).__name__}")
    return row


def read_torch(
    uri: str, version: store.Entry, max_row_bytes: int = MAX_ROW_BYTES
) -> Iterator[RawRow]:
    """The samples of a file that ``torch.save`` wrote, each with what stands beside them.

    Raises:
        InputChanged: The file is another one than the ``version`` that was listed.
        Refused: Reading it would run code, or there are no samples in it.
    """
    import torch

    with open_file(uri, version) as raw:
        try:
            whole = torch.load(raw, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
            raise Refused(
                f"corpus {uri}: it can't be read without running code: "
                f"{str(error).partition(chr(10))[0]}"
            ) from None
    samples = whole.get("samples") if isinstance(whole, dict) else None
    if not isinstance(samples, list):
        raise Refused(f"corpus {uri}: expected a dict with a list `samples`, as slime writes it")
    besides = {name: value for name, value in whole.items() if name != "samples"}
    for number, sample in enumerate(samples):
        if not isinstance(sample, dict):
            yield number, RowRejected(Status.MALFORMED, "expected a dict, as slime writes a sample")
        elif sys.getsizeof(sample.get("tokens")) > max_row_bytes:
            yield number, _too_large("its tokens take more", max_row_bytes)
        else:
            yield number, besides | {name: _plain(value) for name, value in sample.items()}


def _plain(value: Any) -> Any:
    """A tensor as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def read_parquet(
    uri: str,
    version: store.Entry,
    start: int = 0,
    stop: int = sys.maxsize,
    columns: Collection[str] | None = None,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> Iterator[RawRow]:
    """Rows [start, stop) of a Parquet file; of its columns only those named, if they are there.

    Raises:
        InputChanged: The file is another one than the ``version`` that was listed.
        Refused: A row group unfolds to more than its rows may take.
    """
    with open_file(uri, version) as raw:
        file = pq.ParquetFile(raw, page_checksum_verification=True)
        # A text that stands in many rows is held once.
        texts = [c.path for c in map(file.schema.column, range(len(file.schema.names))) if _text(c)]
        file = pq.ParquetFile(
            raw,
            metadata=file.metadata,
            page_checksum_verification=True,
            read_dictionary=texts,
        )
        present = [name for name in file.schema_arrow.names if columns is None or name in columns]
        first = 0
        for group in range(file.num_row_groups):
            row_group = file.metadata.row_group(group)
            if first < stop and first + row_group.num_rows > start:
                check_row_group(uri, group, row_group, max_row_bytes)
                yield from _read_row_group(file, group, first, start, stop, present, max_row_bytes)
            first += row_group.num_rows


def _text(column: Any) -> bool:
    return bool(column.physical_type == "BYTE_ARRAY")


def check_row_group(
    uri: str, group: int, row_group: pq.RowGroupMetaData, max_row_bytes: int
) -> None:
    """Refuse a row group whose metadata say that it unfolds to more than its rows may take.

    Raises:
        Refused: It does.
    """
    unfolded = _unfolded_bytes(row_group)
    if unfolded > max(1, row_group.num_rows) * max_row_bytes:
        raise Refused(
            f"corpus {uri}: row group {group} has {amount(row_group.num_rows, 'row')} and unfolds "
            f"to {amount(unfolded, 'byte')}, more than max_row_bytes ({max_row_bytes:,}) for each"
        )


def _unfolded_bytes(row_group: pq.RowGroupMetaData) -> int:
    """Of all columns in memory, texts that repeat once: at least."""
    columns = map(row_group.column, range(row_group.num_columns))
    return sum(max(c.total_uncompressed_size, _VALUE_BYTES * c.num_values) for c in columns)


def _read_row_group(
    file: pq.ParquetFile,
    group: int,
    first: int,
    start: int,
    stop: int,
    columns: list[str],
    max_row_bytes: int,
) -> Iterator[RawRow]:
    offset = first
    row_group = file.metadata.row_group(group)
    row_bytes = max(1, _unfolded_bytes(row_group) // max(1, row_group.num_rows))
    at_once = max(1, min(_PARQUET_BATCH_ROWS, _PARQUET_BATCH_BYTES // row_bytes))
    for batch in file.iter_batches(at_once, row_groups=[group], columns=columns):
        low, high = max(start - offset, 0), min(stop - offset, len(batch))
        if low < high:
            rows = _rows(batch.slice(low, high - low), max_row_bytes)
            yield from enumerate(rows, start=offset + low)
        offset += len(batch)
        if offset >= stop:
            return


def _rows(batch: pa.RecordBatch, max_row_bytes: int) -> Iterator[dict[str, Any] | RowRejected]:
    if _bytes(batch.to_struct_array()) <= min(_PARQUET_BATCH_BYTES, max_row_bytes):
        yield from batch.to_pylist()
        return
    for index in range(len(batch)):
        row = batch.slice(index, 1)
        if (size := _bytes(row.to_struct_array())) > max_row_bytes:
            yield _too_large(f"it has {amount(size, 'byte')}", max_row_bytes)
        else:
            yield row.to_pylist()[0]


def _bytes(values: pa.Array) -> int:
    """Of values written out, each text as often as it stands there."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(values.dictionary)
        return int(pc.sum(lengths.take(values.indices), min_count=0).as_py())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _OFFSET_BYTES * len(values) + _bytes(values.flatten())
    if pa.types.is_struct(kind):
        return sum(map(_bytes, values.flatten()))
    return int(values.nbytes)
