"""The stages of a unit that run on CPUs: read and check it, and create its object at the end.

The stage between is ``actor.ScoreUnit``; this module does not import torch, which takes seconds
and 300 MB in each process that reads or writes.
"""

import json
from collections.abc import Iterable, Iterator
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from dlogp_ray.amounts import amount
from dlogp_ray.analysis.summary import summarise
from dlogp_ray.corpus.pairs import split_pairs
from dlogp_ray.corpus.reading import RawRow, read_jsonl, read_parquet, read_torch
from dlogp_ray.corpus.rows import check_rows, count_special_tokens
from dlogp_ray.corpus.units import Unit
from dlogp_ray.errors import InputChanged
from dlogp_ray.pipelines.run.row import Row, from_bytes, guarded, receipt, to_bytes
from dlogp_ray.pipelines.score.job import ScoreJob


def read_unit(row: Row, *, job: ScoreJob) -> Row:
    """Descriptor -> checked corpus rows."""

    def work() -> Row:
        unit = Unit(**{key: row[key] for key in Unit.__dataclass_fields__})
        records = _Counted(raw_rows(unit, job))
        table = checked_rows(records, unit.file, unit.source, job)
        if unit.format == "parquet":
            check_count(unit, records.count)
        return {
            "index": unit.index,
            "rows": len(table),
            "payload": to_bytes(table),
            "special_tokens": json.dumps(count_special_tokens(table)),
            "seconds": 0.0,
            "error": "",
        }

    return guarded("reading", row, work)


class _Counted:
    """Records as they are read, and how many there were."""

    def __init__(self, records: Iterator[RawRow]) -> None:
        self._records, self.count = records, 0

    def __iter__(self) -> Iterator[RawRow]:
        for record in self._records:
            self.count += 1
            yield record


def check_count(unit: Unit, rows: int) -> None:
    """Check that a unit of a Parquet file has the rows that were planned.

    Raises:
        InputChanged: It has more or fewer.
    """
    planned = unit.stop - unit.start
    if rows != planned:
        raise InputChanged(
            f"corpus_changed: {unit.file} gave {amount(rows, 'row')} of [{unit.start}, "
            f"{unit.stop}), and {planned} were planned"
        )


def checked_rows(records: Iterable[RawRow], file: str, source: int, job: ScoreJob) -> pa.Table:
    """The rows of records as ``check_rows`` has them.

    Args:
        records: As they stand in a file, with their offsets.
        file: Its address.
        source: Number of the corpus entry that names it.
        job: How rows are made and checked.
    """
    return check_made(made_rows(records, file, source, job), file, source, job)


def made_rows(records: Iterable[RawRow], file: str, source: int, job: ScoreJob) -> Iterator[RawRow]:
    """The rows of records under the standard names."""
    rows = job.maps[source].rows(records, file)
    return split_pairs(rows) if job.config.pairs else rows


def check_made(rows: Iterable[RawRow], file: str, source: int, job: ScoreJob) -> pa.Table:
    """What ``made_rows`` gives, checked."""
    row_map = job.maps[source]
    tokenizer = partial(job.text_tokenizer, row_map.prompts)
    return check_rows(rows, file, job.rules, tokenizer, row_map.label)


def raw_rows(unit: Unit, job: ScoreJob) -> Iterator[RawRow]:
    """The unit's records as they stand in the corpus, read as they are asked for."""
    most = job.config.max_row_bytes
    if unit.format == "parquet":
        wanted = job.maps[unit.source].reads(job.rules.carry)
        return read_parquet(unit.file, unit.file_entry, unit.start, unit.stop, wanted, most)
    if unit.format == "torch":
        return read_torch(unit.file, unit.file_entry, most)
    stop = None if unit.compression else unit.stop
    return read_jsonl(unit.file, unit.file_entry, unit.start, stop, unit.compression, most)


def write_unit(row: Row, *, job: ScoreJob) -> Row:
    """Score rows -> the object, created unless it exists; the receipt says whether it was."""

    def work() -> Row:
        scores = from_bytes(row["payload"])
        if len(scores) != row["rows"] * len(job.config.compared):
            raise AssertionError(f"{row['rows']} rows of the corpus became {len(scores)} rows")
        special_tokens = json.loads(row["special_tokens"])
        summary = summarise(scores).model_copy(update={"special_tokens": special_tokens})
        created = job.folder.commit(
            row["index"],
            scores,
            rows_in=row["rows"],
            summary=summary,
            special_tokens=special_tokens,
        )
        return {
            "created": created,
            "tokens": pc.sum(pc.list_value_length(scores["response_ids"]), min_count=0).as_py(),
            "rows": len(scores),
            "rejected": summary.rejected,
            "uncompiled": row["uncompiled"],
        }

    return receipt(row, work)
