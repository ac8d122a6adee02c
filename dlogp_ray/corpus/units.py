"""Work units: parts of the corpus, cut from the listing and file metadata alone.

The same corpus and unit size give the same units in every process. A unit is a range of rows of a
Parquet file, a range of bytes of a JSONL file (a line belongs to the range that holds its first
byte), or one whole compressed file.
"""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.corpus.files import CorpusFile
from dlogp_ray.corpus.reading import read_jsonl
from dlogp_ray.errors import Refused, RowRejected

_SAMPLE_BYTES = 256 * 1024
"""How much of a JSONL file is read to estimate its tokens a byte."""
_BYTES_PER_TEXT_TOKEN = 4
_COMPRESSION_RATIO = 4
_READERS = 16


@dataclass(frozen=True)
class Unit:
    """One work unit.

    Attributes:
        index: Its place in the list, from 0.
        file: Address of the corpus file.
        format: "parquet" or "jsonl".
        compression: Of the whole file, or None.
        start: First row (Parquet) or byte (JSONL).
        stop: The row or byte after the last.
        tokens: Prompt and response tokens, about.
        size_bytes: Of the file's part, as stored, about.
    """

    index: int
    file: str
    format: str
    compression: str | None
    start: int
    stop: int
    tokens: int
    size_bytes: int

    @property
    def name(self) -> str:
        """The name of its object and its records, without an ending."""
        return unit_name(self.index)


def unit_name(index: int) -> str:
    """``part-00000042``: names sort as units do."""
    return f"part-{index:08d}"


def cut_units(
    files: Sequence[CorpusFile], unit_tokens: int, columns: Mapping[str, str]
) -> list[Unit]:
    """Cut every file into equal parts of at most about ``unit_tokens`` tokens.

    Args:
        files: The corpus.
        unit_tokens: Prompt and response tokens of one unit.
        columns: Standard column name -> name in the corpus, for the estimate of tokens.

    Raises:
        Refused: A file can't be read, or the corpus is empty.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        extents = list(pool.map(lambda file: _extent(file, columns), files))
    units: list[Unit] = []
    for file, (length, tokens) in zip(files, extents, strict=True):
        if length == 0:
            continue
        splittable = file.compression is None
        parts = min(length, -(-tokens // unit_tokens)) if splittable else 1
        bounds = [length * part // parts for part in range(parts + 1)]
        for start, stop in pairwise(bounds):
            share = (stop - start) / length
            units.append(
                Unit(
                    index=len(units),
                    file=file.uri,
                    format=file.format,
                    compression=file.compression,
                    start=start,
                    stop=stop,
                    tokens=round(tokens * share),
                    size_bytes=round(file.size_bytes * share),
                )
            )
    if not units:
        raise Refused(f"corpus: all {len(files)} files are empty")
    return units


def _extent(file: CorpusFile, columns: Mapping[str, str]) -> tuple[int, int]:
    """Length (rows or bytes) and tokens of a file; at least one token a file that is not empty."""
    if file.format == "parquet":
        length, tokens = _parquet_extent(file, columns)
    else:
        length = file.size_bytes
        expanded = length * (_COMPRESSION_RATIO if file.compression else 1)
        try:
            tokens = round(expanded * _density(file, columns))
        except OSError as error:
            raise Refused(f"corpus {file.uri}: can't be read: {error}") from None
    return length, max(tokens, 1)


def _parquet_extent(file: CorpusFile, columns: Mapping[str, str]) -> tuple[int, int]:
    filesystem, path = store.open_store(file.uri)
    try:
        with filesystem.open(path, "rb") as raw:
            metadata = pq.ParquetFile(raw).metadata
    except (pa.ArrowException, OSError) as error:
        raise Refused(f"corpus {file.uri}: not a readable Parquet file: {error}") from None
    ids = {columns.get(name, name) for name in ("prompt_ids", "response_ids")}
    texts = {columns.get(name, name) for name in ("prompt", "messages", "response")}
    counted, text_bytes = 0, 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            root = column.path_in_schema.split(".")[0]
            counted += column.num_values if root in ids else 0
            text_bytes += column.total_uncompressed_size if root in texts else 0
    return metadata.num_rows, counted or text_bytes // _BYTES_PER_TEXT_TOKEN


def _density(file: CorpusFile, columns: Mapping[str, str]) -> float:
    """Tokens a byte of the beginning of a JSONL file."""
    tokens, sampled = 0, 0
    stop = None if file.compression else _SAMPLE_BYTES
    for offset, row in read_jsonl(file.uri, 0, stop, file.compression):
        if offset >= _SAMPLE_BYTES:
            break
        if isinstance(row, RowRejected):
            continue
        for name in ("prompt_ids", "response_ids", "prompt", "messages", "response"):
            value = row.get(columns.get(name, name))
            if value is None:
                continue
            ids = isinstance(value, list) and name.endswith("_ids")
            tokens += len(value) if ids else len(str(value)) // _BYTES_PER_TEXT_TOKEN
        with contextlib.suppress(RecursionError):  # nested as deep as json.loads goes
            sampled += len(json.dumps(row))
    return tokens / sampled if sampled else 1 / _BYTES_PER_TEXT_TOKEN


_SCHEMA = pa.schema(
    {
        "index": pa.int64(),
        "file": pa.string(),
        "format": pa.string(),
        "compression": pa.string(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "tokens": pa.int64(),
        "size_bytes": pa.int64(),
    }
)


def encode_units(units: Sequence[Unit]) -> bytes:
    """``units.parquet``: the same units give the same bytes."""
    sink = io.BytesIO()
    table = pa.Table.from_pylist([asdict(unit) for unit in units], schema=_SCHEMA)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def decode_units(data: bytes) -> list[Unit]:
    """Read ``units.parquet``."""
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    return [Unit(**row) for row in table.to_pylist()]
