"""Whether rows can have what a job needs of them, seen at the corpus's beginning."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray.config.run import MAX_ROW_BYTES
from dlogp_ray.corpus.files import CorpusFile
from dlogp_ray.corpus.reading import open_file, read_jsonl
from dlogp_ray.errors import Refused, RowRejected

_FILES = 8
"""So many of the first, for what one of them holds may be bad."""
_ROWS = 100
"""Of each."""
_RESPONSES = ("response_ids", "response")
_PROMPTS = ("prompt_ids", "prompt", "messages")
_NEEDED = (("sample_id",), _PROMPTS, _RESPONSES)
_NEEDED_OF_PAIRS = (
    ("sample_id",),
    _PROMPTS,
    ("chosen_ids", "chosen"),
    ("rejected_ids", "rejected"),
)
"""Of each of these, one."""


def check_columns(
    files: Sequence[CorpusFile],
    columns: Mapping[str, str],
    *,
    pairs: bool = False,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> None:
    """Refuse a corpus whose first rows all lack what every row needs, or what the job names.

    Rows that can't be read say nothing: each is rejected in its place.

    Args:
        files: The corpus.
        columns: Standard column name -> name in the corpus.
        pairs: Whether rows have two responses.
        max_row_bytes: What a row may take.

    Raises:
        Refused: It names what is missing, and what is there.
    """
    seen: dict[str, None] = {}
    rows = 0
    for file in files[:_FILES]:
        names, count = _names(file, max_row_bytes)
        seen |= dict.fromkeys(names)
        rows += count
    if not rows and len(files) <= _FILES:
        raise Refused(f"corpus: there is no row in {', '.join(file.uri for file in files)}")
    if not seen:
        return
    there = f"the rows at the beginning of {files[0].uri} have {', '.join(seen)}"
    for standard, name in columns.items():
        if name not in seen:
            raise Refused(
                f"columns: {{{standard}: {name}}}: there is no column {name!r}; {there}. Correct "
                "the name on the right"
            )
    for group in _NEEDED_OF_PAIRS if pairs else _NEEDED:
        if not any(columns.get(name, name) in seen for name in group):
            wanted = " or ".join(repr(columns.get(name, name)) for name in group)
            raise Refused(
                f"corpus: a row {'with `pairs: true` ' if pairs else ''}needs {wanted}, and "
                f"{there}. If one of these is it, say so: columns: {{{group[0]}: ITS NAME}}"
            )


def _names(file: CorpusFile, max_row_bytes: int) -> tuple[list[str], int]:
    """Of a file's columns, or of what its first rows have that is not null; and how many rows."""
    if file.format == "parquet":
        try:
            with open_file(file.uri, file.entry) as raw:
                parquet = pq.ParquetFile(raw)
                names, rows = parquet.schema_arrow.names, parquet.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise Refused(f"corpus {file.uri}: not a readable Parquet file: {error}") from None
        if twice := sorted(name for name, n in Counter(names).items() if n > 1):
            raise Refused(f"corpus {file.uri}: the column {twice[0]!r} is there twice; rename one")
        return names, rows
    try:
        first = read_jsonl(file.uri, file.entry, 0, None, file.compression, max_row_bytes)
        names, count = dict[str, None](), 0
        for _, row in islice(first, _ROWS):  # one at a time: each may take max_row_bytes
            count += 1
            if not isinstance(row, RowRejected):
                names |= dict.fromkeys(name for name, value in row.items() if value is not None)
    except OSError as error:
        what = f"is damaged, or not {file.compression}" if file.compression else "can't be read"
        raise Refused(f"corpus {file.uri}: {what}: {error}") from None
    return [*names], count
