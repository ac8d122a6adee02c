"""Rows with two responses: two samples, which are checked as any others."""

import json
from typing import Any

import pytest

from dlogp_ray.config import CorpusEntry
from dlogp_ray.corpus.cutting import _density
from dlogp_ray.corpus.files import list_corpus
from dlogp_ray.corpus.mapping import PLAIN, RowMap
from dlogp_ray.corpus.pairs import split_pairs
from dlogp_ray.corpus.rows import RowRules, check_rows
from dlogp_ray.errors import RowRejected


def checked(rows: list[Any], columns: dict[str, str] | None = None) -> list[dict[str, Any]]:
    rules = RowRules(24, None, {"topic": "string"})
    row_map = RowMap(CorpusEntry(path="c", columns=columns or {}))
    pairs = split_pairs(row_map.rows(enumerate(rows), "pairs.jsonl"))
    table = check_rows(pairs, "pairs.jsonl", rules, lambda: pytest.fail("no text"), row_map.label)
    found: list[dict[str, Any]] = table.to_pylist()
    return found


ROW = {
    "sample_id": "p",
    "prompt_ids": [2, 3],
    "chosen_ids": [4, 5, 6],
    "rejected_ids": [7],
    "topic": "sums",
    "response_ids": [9, 9],
    "response_mask": [1, 1],
}


def test_a_row_is_two_samples_with_all_else_the_same() -> None:
    chosen, rejected = checked([ROW])
    assert (chosen["sample_id"], rejected["sample_id"]) == ("p/chosen", "p/rejected")
    assert (chosen["response_ids"], rejected["response_ids"]) == ([4, 5, 6], [7])
    assert chosen["response_mask"] == [True] * 3
    for name in ("prompt_ids", "topic", "source_offset"):
        assert chosen[name] == rejected[name]
    assert {chosen["status"], rejected["status"]} == {"ok"}


def test_the_corpus_may_call_them_otherwise() -> None:
    row = {"id": 7, "prompt_ids": [2], "better": [3], "worse": [4]}
    columns = {"sample_id": "id", "chosen_ids": "better", "rejected_ids": "worse"}
    found = checked([row], columns)
    assert [(one["sample_id"], one["response_ids"]) for one in found] == [
        ("7/chosen", [3]),
        ("7/rejected", [4]),
    ]


def test_what_is_missing_is_rejected_sample_by_sample() -> None:
    lacking = {key: value for key, value in ROW.items() if key != "rejected_ids"}
    nameless = {key: value for key, value in ROW.items() if key != "sample_id"}
    broken = RowRejected("bad_json", "no JSON")
    found = checked([lacking, nameless, broken, ROW, ROW])
    assert [one["status"] for one in found] == [
        *("ok", "missing_column"),
        *("missing_column", "missing_column"),
        "bad_json",
        *("duplicate_sample_id", "ok"),
        *("duplicate_sample_id", "duplicate_sample_id"),
    ]
    assert "'response_ids'" in found[1]["error"]


def test_both_responses_count_as_tokens(tmp_path: Any) -> None:
    path = tmp_path / "pairs.jsonl"
    row = {"sample_id": "p", "prompt_ids": [2, 3], "chosen_ids": [4, 5, 6], "rejected_ids": [7]}
    path.write_text(json.dumps(row) + "\n")
    (file,) = list_corpus([str(path)])
    # 2 + 3 + 1 tokens over the bytes of the row.
    assert _density(file, PLAIN) == pytest.approx(6 / len(json.dumps(row)))
