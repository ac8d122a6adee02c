"""Work units are cut from the corpus's listing and file metadata alone.

The same corpus and unit size give the same units in every process.
"""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray.config.run import MAX_ROW_BYTES
from dlogp_ray.corpus.columns import head
from dlogp_ray.corpus.files import CorpusFile
from dlogp_ray.corpus.mapping import PLAIN, RowMap
from dlogp_ray.corpus.reading import check_row_group, open_file, read_jsonl
from dlogp_ray.corpus.units import Units
from dlogp_ray.errors import Refused, RowRejected

_SAMPLE_BYTES = 256 * 1024
"""How much of a JSONL file is read to estimate its tokens a byte."""
_TEXTS = {
    "prompt_ids": ("prompt", "messages"),
    "response_ids": ("response",),
    "chosen_ids": ("chosen",),
    "rejected_ids": ("rejected",),
}
"""Column of ids -> those that hold it as text; where there are both, the ids are scored."""
_BYTES_PER_TEXT_TOKEN = 4
_COMPRESSION_RATIO = 4
_READERS = 16


def cut_units(
    files: Sequence[CorpusFile],
    unit_tokens: int,
    maps: Sequence[RowMap] = (PLAIN,),
    max_row_bytes: int = MAX_ROW_BYTES,
) -> Units:
    """Cut every file into equal parts of at most about ``unit_tokens`` tokens.

    Args:
        files: The corpus.
        unit_tokens: Prompt and response tokens of one unit.
        maps: How rows are made, of each corpus entry: for the estimate of tokens.
        max_row_bytes: What a row may take.

    Raises:
        Refused: A file can't be read, unfolds to too much, or the corpus is empty.
        InputChanged: A file is not the one that was listed.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        extents = list(
            pool.map(lambda file: _extent(file, maps[file.source], max_row_bytes), files)
        )
    tables, count = [], 0
    for file, (length, tokens) in zip(files, extents, strict=True):
        if length == 0:
            continue
        splittable = file.compression is None and file.format != "torch"
        parts = min(length, -(-tokens // unit_tokens)) if splittable else 1
        bounds = _bounds(length, parts)
        start, stop = bounds[:-1], bounds[1:]
        share = (stop - start) / length
        tables.append(
            pa.table(
                {
                    "index": np.arange(count, count + parts),
                    "file": _repeat(file.uri, parts),
                    "format": _repeat(file.format, parts),
                    "compression": _repeat(file.compression, parts),
                    "start": start,
                    "stop": stop,
                    "tokens": np.rint(tokens * share).astype(np.int64),
                    "size_bytes": np.rint(file.size_bytes * share).astype(np.int64),
                    "file_bytes": pa.repeat(file.size_bytes, parts),
                    "version": _repeat(file.version, parts),
                    "source": pa.repeat(file.source, parts),
                    "state": _repeat(file.state, parts),
                }
            )
        )
        count += parts
    if not tables:
        raise Refused(f"corpus: there is no row in {', '.join(file.uri for file in files)}")
    return Units(pa.concat_tables(tables))


def _bounds(length: int, parts: int) -> npt.NDArray[np.int64]:
    """``length * part // parts`` for each part and the end, without a product that overflows."""
    part = np.arange(parts + 1, dtype=np.int64)
    return length // parts * part + length % parts * part // parts


def _repeat(value: str | None, times: int) -> pa.DictionaryArray:
    scalar = pa.scalar(value, pa.string())
    return pa.repeat(scalar, times).dictionary_encode()


def _extent(file: CorpusFile, row_map: RowMap, max_row_bytes: int) -> tuple[int, int]:
    """Length (rows or bytes) and tokens of a file; at least one token a file that is not empty."""
    try:
        if file.format == "parquet":
            length, tokens = _parquet_extent(file, row_map, max_row_bytes)
        elif file.format == "torch":
            length = file.size_bytes
            rows = row_map.all_rows(head(file, max_row_bytes, sys.maxsize), file.uri)
            tokens = sum(_tokens(row) for _, row in rows)
        else:
            length = file.size_bytes
            expanded = length * (_COMPRESSION_RATIO if file.compression else 1)
            tokens = round(expanded * _density(file, row_map, max_row_bytes))
    except OSError as error:
        raise Refused(f"corpus {file.uri}: can't be read: {error}") from None
    return length, max(tokens, 1)


def _parquet_extent(file: CorpusFile, row_map: RowMap, max_row_bytes: int) -> tuple[int, int]:
    try:
        with open_file(file.uri, file.entry) as raw:
            metadata = pq.ParquetFile(raw).metadata
    except (pa.ArrowException, OSError) as error:
        raise Refused(f"corpus {file.uri}: not a readable Parquet file: {error}") from None
    values, sizes = Counter[str](), Counter[str]()
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        check_row_group(file.uri, group, row_group, max_row_bytes)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            root = column.path_in_schema.split(".")[0]
            values[root] += column.num_values
            sizes[root] += column.total_uncompressed_size
    if not row_map.by_name:
        return metadata.num_rows, _tokens_by_head(file, row_map, max_row_bytes, metadata.num_rows)
    tokens = 0
    for ids, texts in _TEXTS.items():
        text_bytes = sum(sizes[row_map.label(name)] for name in texts)
        tokens += values[row_map.label(ids)] or text_bytes // _BYTES_PER_TEXT_TOKEN
    return metadata.num_rows, tokens


def _tokens_by_head(file: CorpusFile, row_map: RowMap, max_row_bytes: int, records: int) -> int:
    """Tokens of so many records, by those of the first."""
    first = list(head(file, max_row_bytes))
    rows = row_map.all_rows(first, file.uri)
    return sum(_tokens(row) for _, row in rows) * records // max(1, len(first))


def _tokens(row: dict[str, Any] | RowRejected) -> int:
    """Prompt and response tokens of a row, about."""
    if isinstance(row, RowRejected):
        return 0
    tokens = 0
    for ids, texts in _TEXTS.items():
        values = row.get(ids)
        if isinstance(values, list):
            tokens += len(values)
        else:
            held = (row.get(name) for name in texts)
            tokens += sum(len(str(text)) // _BYTES_PER_TEXT_TOKEN for text in held if text)
    return tokens


def _density(file: CorpusFile, row_map: RowMap, max_row_bytes: int = MAX_ROW_BYTES) -> float:
    """Tokens a byte of the beginning of a JSONL file."""
    tokens, sampled = 0, 0
    stop = None if file.compression else _SAMPLE_BYTES
    for offset, record in read_jsonl(
        file.uri, file.entry, 0, stop, file.compression, max_row_bytes
    ):
        if offset >= _SAMPLE_BYTES:
            break
        if isinstance(record, RowRejected):
            continue
        tokens += sum(_tokens(row) for _, row in row_map.all_rows([(offset, record)], file.uri))
        with contextlib.suppress(RecursionError):  # nested as deep as json.loads goes
            sampled += len(json.dumps(record))
    return tokens / sampled if sampled else 1 / _BYTES_PER_TEXT_TOKEN
