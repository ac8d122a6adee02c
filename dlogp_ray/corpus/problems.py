"""Problems that are to be answered: read whole, checked, and brought to one form.

    {"problem_id": "aime24-7", "prompt": "Find the number of …", "answer": "204"}

A problem that does not fit is refused by name before anything runs: there are thousands of them at
most, and each stands for thousands of answers.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray.amounts import amount
from dlogp_ray.corpus.files import CorpusFile
from dlogp_ray.corpus.reading import read_jsonl, read_parquet
from dlogp_ray.corpus.rows import id_list, identifier, text_prompt
from dlogp_ray.corpus.text import TextIds, TextTokenizer
from dlogp_ray.corpus.units import SCHEMA as UNITS_SCHEMA
from dlogp_ray.corpus.units import Units
from dlogp_ray.errors import Refused, RowRejected
from dlogp_ray.status import Status
from dlogp_ray.tables.places import place

PROBLEMS = "problems.parquet"
"""Their name in a run; one row group a unit."""
SCHEMA = pa.schema(
    {"problem_id": pa.string(), "prompt_ids": pa.list_(pa.int32()), "row": pa.string()}
)
"""``row`` is what a verifier is given, in JSON: the problem as it came, and what ``columns`` maps
under the standard names too."""
_NAMED = 5
_Place = tuple[str, int]
"""File, and byte or row."""


def read_problems(
    files: Sequence[CorpusFile],
    columns: Mapping[str, str],
    text_tokenizer: Callable[[], TextTokenizer],
    why_not: Callable[[Sequence[int]], str | None],
    needed: Sequence[str] = (),
) -> tuple[pa.Table, dict[str, int]]:
    """All problems, in order, and how many have special tokens as ``tables.special_tokens`` names.

    Args:
        files: JSONL or Parquet.
        columns: Standard column name -> the name that it has there.
        text_tokenizer: Called for problems that are text.
        why_not: What keeps a prompt from being answered, None where nothing does.
        needed: Columns that the verifier looks at.

    Raises:
        Refused: There are none, one does not fit, or a ``problem_id`` occurs twice; they are named.
    """
    rows: list[dict[str, Any]] = []
    special: Counter[str] = Counter()
    wrong: list[tuple[_Place, RowRejected]] = []
    seen: dict[str, _Place] = {}
    there: dict[str, None] = {}
    for at, raw in _raw(files):
        try:
            if isinstance(raw, RowRejected):
                raise raw
            there |= dict.fromkeys(raw)
            problem, prompt = _problem(raw, columns, text_tokenizer, needed)
            name = problem["problem_id"]
            if first := seen.get(name):
                raise RowRejected(
                    Status.DUPLICATE_PROBLEM_ID,
                    f"problem_id {name!r} is at {place(*first)} already",
                )
            seen[name] = at
            if reason := why_not(problem["prompt_ids"]):
                raise RowRejected(Status.UNFIT, f"problem {name}: {reason}")
            rows.append(problem)
            special.update(prompt.special)
        except RowRejected as rejection:
            wrong.append((at, rejection))
    if wrong:
        told = [f"{place(*at)}: {rejection.error}" for at, rejection in wrong[:_NAMED]]
        if len(wrong) > _NAMED:
            told.append(f"and {len(wrong) - _NAMED:,} more")
        if not rows and all(r.status is Status.MISSING_COLUMN for _, r in wrong):
            told.append(
                f"The problems have {', '.join(there)}. If one of these is it, say so, as in "
                "columns: {prompt: ITS NAME, answer: ITS NAME}"
            )
        what = f"{amount(len(wrong), 'problem')} can't be answered; correct or leave out:"
        raise Refused("\n  ".join([what, *told]))
    if not rows:
        raise Refused(f"there are no problems in {', '.join(file.uri for file in files)}")
    return pa.Table.from_pylist(rows, schema=SCHEMA), dict(special)


def encode_problems(problems: pa.Table, unit_problems: int) -> bytes:
    """``problems.parquet``: the same problems give the same bytes."""
    sink = io.BytesIO()
    pq.write_table(
        problems,
        sink,
        compression="zstd",
        row_group_size=unit_problems,
        write_page_checksum=True,
    )
    return sink.getvalue()


def problem_units(uri: str, data: bytes, problems: int, unit_problems: int, answers: int) -> Units:
    """Work units of some problems each; the version of their file is the SHA-256 of its content.

    Args:
        uri: Address of ``problems.parquet``.
        data: What is in it.
        problems: How many there are.
        unit_problems: In a unit.
        answers: To each problem; what ``Unit.tokens`` counts here.
    """
    starts, version = range(0, problems, unit_problems), hashlib.sha256(data).hexdigest()
    rows = [
        {
            "index": index,
            "file": uri,
            "format": "problems",
            "compression": None,
            "start": start,
            "stop": min(start + unit_problems, problems),
            "tokens": (min(start + unit_problems, problems) - start) * answers,
            "size_bytes": 0,
            "file_bytes": len(data),
            "version": version,
            "source": 0,
        }
        for index, start in enumerate(starts)
    ]
    return Units(pa.Table.from_pylist(rows, schema=UNITS_SCHEMA))


def _raw(files: Sequence[CorpusFile]) -> Iterator[tuple[_Place, dict[str, Any] | RowRejected]]:
    for file in files:
        if file.format == "parquet":
            rows = read_parquet(file.uri, file.entry)
        else:
            rows = read_jsonl(file.uri, file.entry, 0, None, file.compression)
        for offset, raw in rows:
            yield (file.uri, offset), raw


def _problem(
    raw: Mapping[str, Any],
    columns: Mapping[str, str],
    text_tokenizer: Callable[[], TextTokenizer],
    needed: Sequence[str],
) -> tuple[dict[str, Any], TextIds]:
    def theirs(column: str) -> str:
        return columns.get(column, column)

    def value(column: str) -> Any:
        return raw.get(theirs(column))

    problem_id = identifier(theirs("problem_id"), value("problem_id"))
    if problem_id is None:
        raise RowRejected(Status.MISSING_COLUMN, f"there is no {theirs('problem_id')!r}")
    if value("prompt_ids") is not None:
        prompt = TextIds(id_list(theirs("prompt_ids"), value("prompt_ids")))
    else:
        prompt = text_prompt(value, theirs, text_tokenizer)
    for column in needed:
        if value(column) is None:
            raise RowRejected(
                Status.MISSING_COLUMN,
                f"problem {problem_id}: there is no {theirs(column)!r}, which the verifier needs",
            )
    # Under the standard names as well, so that a verifier finds what it looks for.
    named = {column: raw[name] for column, name in columns.items() if name in raw}
    try:
        row = json.dumps({**raw, **named}, default=str)
    except ValueError as error:
        raise RowRejected(Status.WRONG_TYPE, f"problem {problem_id}: {error}") from None
    return {"problem_id": problem_id, "prompt_ids": prompt.ids, "row": row}, prompt
