"""Work units are cut from the corpus's listing and file metadata alone.

The same corpus and unit size give the same units in every process.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray.config.run import MAX_ROW_BYTES
from dlogp_ray.corpus.files import CorpusFile
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
    columns: Mapping[str, str],
    max_row_bytes: int = MAX_ROW_BYTES,
) -> Units:
    """Cut every file into equal parts of at most about ``unit_tokens`` tokens.

    Args:
        files: The corpus.
        unit_tokens: Prompt and response tokens of one unit.
        columns: Standard column name -> name in the corpus, for the estimate of tokens.
        max_row_bytes: What a row may take.

    Raises:
        Refused: A file can't be read, unfolds to too much, or the corpus is empty.
        InputChanged: A file is not the one that was listed.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        extents = list(pool.map(lambda file: _extent(file, columns, max_row_bytes), files))
    tables, count = [], 0
    for file, (length, tokens) in zip(files, extents, strict=True):
        if length == 0:
            continue
        splittable = file.compression is None
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


def _extent(file: CorpusFile, columns: Mapping[str, str], max_row_bytes: int) -> tuple[int, int]:
    """Length (rows or bytes) and tokens of a file; at least one token a file that is not empty."""
    if file.format == "parquet":
        length, tokens = _parquet_extent(file, columns, max_row_bytes)
    else:
        length = file.size_bytes
        expanded = length * (_COMPRESSION_RATIO if file.compression else 1)
        try:
            tokens = round(expanded * _density(file, columns, max_row_bytes))
        except OSError as error:
            raise Refused(f"corpus {file.uri}: can't be read: {error}") from None
    return length, max(tokens, 1)


def _parquet_extent(
    file: CorpusFile, columns: Mapping[str, str], max_row_bytes: int
) -> tuple[int, int]:
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
    tokens = 0
    for ids, texts in _TEXTS.items():
        text_bytes = sum(sizes[columns.get(name, name)] for name in texts)
        tokens += values[columns.get(ids, ids)] or text_bytes // _BYTES_PER_TEXT_TOKEN
    return metadata.num_rows, tokens


def _density(
    file: CorpusFile, columns: Mapping[str, str], max_row_bytes: int = MAX_ROW_BYTES
) -> float:
    """Tokens a byte of the beginning of a JSONL file."""
    tokens, sampled = 0, 0
    stop = None if file.compression else _SAMPLE_BYTES
    for offset, row in read_jsonl(file.uri, file.entry, 0, stop, file.compression, max_row_bytes):
        if offset >= _SAMPLE_BYTES:
            break
        if isinstance(row, RowRejected):
            continue
        for ids, texts in _TEXTS.items():
            values = row.get(columns.get(ids, ids))
            if isinstance(values, list):
                tokens += len(values)
                continue
            held = [row.get(columns.get(name, name)) for name in texts]
            tokens += sum(len(str(text)) // _BYTES_PER_TEXT_TOKEN for text in held if text)
        with contextlib.suppress(RecursionError):  # nested as deep as json.loads goes
            sampled += len(json.dumps(row))
    return tokens / sampled if sampled else 1 / _BYTES_PER_TEXT_TOKEN
