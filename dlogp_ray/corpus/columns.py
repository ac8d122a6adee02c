"""Whether rows can have what a job needs of them, seen at the beginning of each corpus entry."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray.config.run import MAX_ROW_BYTES
from dlogp_ray.corpus.files import CorpusFile
from dlogp_ray.corpus.formats import FORMATS, format_like
from dlogp_ray.corpus.mapping import AUTO, RowMap
from dlogp_ray.corpus.reading import RawRow, open_file, read_jsonl, read_parquet, read_torch
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
    maps: Sequence[RowMap],
    *,
    pairs: bool = False,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> None:
    """Refuse a corpus entry whose first rows all lack what every row needs, or what it names.

    Rows that can't be read say nothing: each is rejected in its place.

    Args:
        files: The corpus.
        maps: How rows are made, of each entry.
        pairs: Whether rows have two responses.
        max_row_bytes: What a row may take.

    Raises:
        Refused: It names what is missing, and what is there.
    """
    rows = 0
    for source, row_map in enumerate(maps):
        of_entry = [file for file in files if file.source == source]
        if of_entry:  # else all of them are another entry's too
            rows += _check_entry(of_entry, row_map, pairs, max_row_bytes)
    if not rows and len(files) <= _FILES:
        raise Refused(f"corpus: there is no row in {', '.join(file.uri for file in files)}")


@dataclass
class _Seen:
    """What the first rows of an entry have that is not null.

    Attributes:
        records: How many there are.
        names: Of their columns, as they stand in the file.
        standard: The same of the rows that are made of them.
        rejected: What was wrong with a record, of each kind the first.
    """

    records: int = 0
    names: dict[str, None] = field(default_factory=dict)
    standard: set[str] = field(default_factory=set)
    rejected: dict[str, str] = field(default_factory=dict)


def _check_entry(
    files: Sequence[CorpusFile], row_map: RowMap, pairs: bool, max_row_bytes: int
) -> int:
    """The same of one entry; how many records there are, as far as was looked."""
    seen = _Seen()
    for file in files[:_FILES]:
        _look(file, row_map, max_row_bytes, seen)
    if not seen.names:
        return seen.records
    entry, first = row_map.entry, files[0].uri
    there = f"the rows at the beginning of {first} have {', '.join(seen.names)}"
    like = format_like(seen.names)
    looks = f". It looks like {FORMATS[like].what}: format: {like}" if like else ""
    if row_map.form is not None and (missing := row_map.form.keys - seen.names.keys()):
        raise Refused(
            f"format {entry.format}: {row_map.form.what} have {', '.join(sorted(missing))}, and "
            f"{there}{looks}"
        )
    _check_lossy(row_map, seen, first)
    if seen.rejected and not seen.standard:
        raise Refused(f"corpus {first}: {next(iter(seen.rejected.values()))}; {there}")
    if condition := row_map.condition:
        condition.check(seen.names.keys() | seen.standard)
    for standard, path in entry.columns.items():
        if standard not in seen.standard:
            raise Refused(
                f"columns: {{{standard}: {path}}}: there is no column {path!r}; {there}. Correct "
                "what is on the right"
            )
    for group in _NEEDED_OF_PAIRS if pairs else _NEEDED:
        if group == ("sample_id",) and (entry.sample_id == AUTO or row_map.form is not None):
            continue
        if not any(name in seen.standard for name in group):
            wanted = " or ".join(repr(row_map.label(name)) for name in group)
            auto = ", or have ids made: sample_id: auto" if group == ("sample_id",) else ""
            raise Refused(
                f"corpus: a row {'with `pairs: true` ' if pairs else ''}needs {wanted}, and "
                f"{there}. If one of these is it, say so: columns: "
                f"{{{group[0]}: ITS NAME}}{auto}{looks}"
            )
    return seen.records


def _check_lossy(row_map: RowMap, seen: "_Seen", first: str) -> None:
    """Refuse texts that have lost what the prompts' ids would need, unless that is accepted.

    Where messages are there, they are rendered again.
    """
    form, entry = row_map.form, row_map.entry
    again = {"messages", "prompt_ids"} & seen.standard
    if form is not None and form.lossy and not entry.accept_lossy and not again:
        raise Refused(
            f"corpus {first}, format {entry.format}: {form.lossy}. Messages that are there can be "
            "rendered again (columns: {messages: WHERE}); accept_lossy: true scores the texts as "
            "they are, as what the policies never saw"
        )


def _look(file: CorpusFile, row_map: RowMap, max_row_bytes: int, seen: _Seen) -> None:
    by_name = row_map.by_name
    if file.format == "parquet":
        try:
            with open_file(file.uri, file.entry) as raw:
                parquet = pq.ParquetFile(raw)
                names, count = parquet.schema_arrow.names, parquet.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise Refused(f"corpus {file.uri}: not a readable Parquet file: {error}") from None
        if twice := sorted(name for name, n in Counter(names).items() if n > 1):
            raise Refused(f"corpus {file.uri}: the column {twice[0]!r} is there twice; rename one")
        seen.records += count
        seen.names |= dict.fromkeys(names)
        if by_name and "conversation" not in names:  # no row has to be read
            seen.standard |= row_map.standard(names)
            return
    try:
        for _, row in row_map.all_rows(_counted(head(file, max_row_bytes), file, seen), file.uri):
            if isinstance(row, RowRejected):
                seen.rejected.setdefault(row.status, row.error)
            else:
                seen.standard |= {name for name, value in row.items() if value is not None}
    except (OSError, pa.ArrowException) as error:
        what = f"is damaged, or not {file.compression}" if file.compression else "can't be read"
        raise Refused(f"corpus {file.uri}: {what}: {error}") from None


def head(file: CorpusFile, max_row_bytes: int, rows: int = _ROWS) -> Iterator[RawRow]:
    """The first records of a file, one at a time: each may take ``max_row_bytes``."""
    if file.format == "parquet":
        return read_parquet(file.uri, file.entry, 0, rows, None, max_row_bytes)
    if file.format == "torch":
        return islice(read_torch(file.uri, file.entry, max_row_bytes), rows)
    records = read_jsonl(file.uri, file.entry, 0, None, file.compression, max_row_bytes)
    return islice(records, rows)


def _counted(records: Iterator[RawRow], file: CorpusFile, seen: _Seen) -> Iterator[RawRow]:
    for offset, record in records:
        seen.records += file.format != "parquet"
        if not isinstance(record, RowRejected):
            seen.names |= dict.fromkeys(n for n, value in record.items() if value is not None)
            yield offset, record
