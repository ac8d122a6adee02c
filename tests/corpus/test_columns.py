"""A corpus whose rows can't be scored is refused before anything starts."""

import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl

from dlogp_ray.config import CorpusEntry
from dlogp_ray.corpus.columns import check_columns
from dlogp_ray.corpus.files import list_corpus
from dlogp_ray.corpus.mapping import PLAIN, RowMap
from dlogp_ray.errors import Refused

GOOD = {"sample_id": "a", "prompt_ids": [1], "response_ids": [2], "reward": 1.0}
TEXT = {"sample_id": "a", "messages": [{"role": "user", "content": "x"}], "response": "y"}
PAIR = {"sample_id": "a", "prompt": "x", "chosen": "y", "rejected": "z"}


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def renamed(row: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in row.items()}


def write(folder: Path, rows: list[Any], form: str) -> Path:
    if form == "jsonl":
        return write_jsonl(folder / "c.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "c.parquet")
    return folder / "c.parquet"


def check(path: Path, **options: Any) -> None:
    row_map = RowMap(CorpusEntry(path=str(path), columns=options.pop("columns", {})))
    check_columns(list_corpus([str(path)]), (row_map,), **options)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "options"),
    [
        (GOOD, {}),
        (TEXT, {}),
        (PAIR, {"pairs": True}),
        (renamed(GOOD, response_ids="out"), {"columns": {"response_ids": "out"}}),
    ],
    ids=str,
)
def test_what_can_be_scored_passes(
    row: dict[str, Any], options: dict[str, Any], form: str, tmp_path: Path
) -> None:
    check(write(tmp_path, [row], form), **options)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        (without(GOOD, "sample_id"), {}, "a row needs 'sample_id', and .* have prompt_ids, resp"),
        (without(GOOD, "response_ids"), {}, "a row needs 'response_ids' or 'response'"),
        (without(TEXT, "messages"), {}, "a row needs 'prompt_ids' or 'prompt' or 'messages'"),
        (without(PAIR, "rejected"), {"pairs": True}, "needs 'rejected_ids' or 'rejected'"),
        (GOOD, {"pairs": True}, "needs 'chosen_ids' or 'chosen'"),
        (
            GOOD,
            {"columns": {"response_ids": "nothere"}},
            r"columns: \{response_ids: nothere\}: there is no column 'nothere'; .* have sample_id",
        ),
        (GOOD, {"columns": {"reward": "score"}}, "there is no column 'score'"),
    ],
    ids=str,
)
def test_what_no_row_can_have_is_refused(
    row: dict[str, Any], options: dict[str, Any], said: str, form: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=said):
        check(write(tmp_path, [row], form), **options)


def test_one_good_row_is_enough(tmp_path: Path) -> None:
    """The others are rejected one by one."""
    check(write_jsonl(tmp_path / "c.jsonl", ["no json", {"x": 1}, {"sample_id": None}, GOOD]))


def test_bad_files_that_come_first_hide_no_good_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"log": 1}] * 3)
    write_jsonl(tmp_path / "b.jsonl", [GOOD])
    check(tmp_path)


def test_where_nothing_can_be_read_nothing_is_said_of_columns(tmp_path: Path) -> None:
    check(write_jsonl(tmp_path / "c.jsonl", ["no json", "neither"]))


def test_a_corpus_of_blank_lines_has_no_row(tmp_path: Path) -> None:
    path = tmp_path / "blank.jsonl"
    path.write_text("\n\n  \n")
    with pytest.raises(Refused, match=r"there is no row in .*blank\.jsonl"):
        check(path)


def test_a_name_is_not_made_up_for_what_is_missing(tmp_path: Path) -> None:
    """The first column that is there may be another one's."""
    path = write_jsonl(tmp_path / "c.jsonl", [without(GOOD, "response_ids")])
    with pytest.raises(Refused, match=r"say so: columns: \{response_ids: ITS NAME\}"):
        check(path)
    with pytest.raises(Refused, match="a row with `pairs: true` needs 'chosen_ids'"):
        check(write_jsonl(tmp_path / "d.jsonl", [GOOD]), pairs=True)


def test_one_row_is_held_at_a_time(tmp_path: Path) -> None:
    """Of a hundred, each of which may take 64 MiB: here 50 of 1 MB."""
    path = write_jsonl(tmp_path / "c.jsonl", [GOOD | {"text": "x" * 1_000_000} for _ in range(50)])
    files = list_corpus([str(path)])
    tracemalloc.start()
    try:
        check_columns(files, (PLAIN,))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000  # a line, its text, its row, and the line before


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    ids = pa.array([[1]], pa.list_(pa.int64()))
    arrays = [pa.array(["a"]), ids, ids, pa.array(["base"]), pa.array(["rl"])]
    names = ["sample_id", "prompt_ids", "response_ids", "generator", "generator"]
    pq.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "c.parquet")
    with pytest.raises(Refused, match="the column 'generator' is there twice; rename one"):
        check(tmp_path / "c.parquet")


def test_a_run_is_no_corpus_and_a_glob_is_told(tmp_path: Path) -> None:
    write(tmp_path, [GOOD], "parquet")
    with pytest.raises(Refused, match="no JSONL or Parquet file that it matches"):
        list_corpus([str(tmp_path / "nothing*.jsonl")])
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(Refused, match="it is a run of dlogp_ray's; give what that was made from"):
        list_corpus([str(tmp_path)])
