"""Problems: every form comes out as ids; what can't be answered is refused by name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_tokenizer, write_jsonl

from dlogp_ray.corpus.files import list_corpus
from dlogp_ray.corpus.problems import encode_problems, problem_units, read_problems
from dlogp_ray.corpus.text import TextTokenizer
from dlogp_ray.demo.tokenizer import build_tokenizer
from dlogp_ray.errors import Refused


def read(
    path: Path,
    columns: dict[str, str] | None = None,
    most: int = 100,
    needed: Sequence[str] = (),
) -> pa.Table:
    def why_not(ids: Sequence[int]) -> str | None:
        return f"too long: {len(ids)}" if len(ids) > most else None

    tokenizer = TextTokenizer(make_tokenizer(), prompt_format="raw", append_eos=False)
    problems, special_tokens = read_problems(
        list_corpus([str(path)]), columns or {}, lambda: tokenizer, why_not, needed
    )
    assert special_tokens == {}
    return problems


def test_text_and_ids_in_files_of_both_kinds_keep_their_rows(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "p/a.jsonl",
        [
            {"problem_id": "one", "prompt": "1+2=", "answer": 3},
            # A character's id is 2 + its place in 0123456789+=
            {"problem_id": 2, "prompt_ids": [3, 12], "answer": "x"},
        ],
    )
    rows = [{"problem_id": "three", "prompt": "4", "answer": "4", "level": 5}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p/b.parquet")
    found = read(tmp_path / "p").to_pylist()
    assert [row["problem_id"] for row in found] == ["one", "2", "three"]
    assert [row["prompt_ids"] for row in found] == [[3, 12, 4, 13], [3, 12], [6]]
    assert json.loads(found[0]["row"]) == {"problem_id": "one", "prompt": "1+2=", "answer": 3}
    assert json.loads(found[2]["row"]) == rows[0]


def test_other_names_are_mapped(tmp_path: Path) -> None:
    row = {"id": "a", "question": "1", "solution": 7}
    path = write_jsonl(tmp_path / "p.jsonl", [row])
    columns = {"problem_id": "id", "prompt": "question", "answer": "solution"}
    found = read(path, columns, needed=["answer"])
    assert found["prompt_ids"].to_pylist() == [[3]]
    # A verifier finds both names.
    standard = {"problem_id": "a", "prompt": "1", "answer": 7}
    assert json.loads(found["row"][0].as_py()) == row | standard


def test_what_the_verifier_needs_is_asked_for_beforehand(tmp_path: Path) -> None:
    rows = [{"problem_id": "a", "prompt": "1", "answer": 0}, {"problem_id": "b", "prompt": "1"}]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    assert len(read(path)) == 2
    with pytest.raises(Refused, match=r"1 problem can't .*\n.*problem b: there is no 'answer'"):
        read(path, needed=["answer"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], r"p\.jsonl, line 1 \(byte 0\): not a line of JSON"),
        ([{"prompt": "1"}], "there is no 'problem_id'"),
        ([{"problem_id": "a"}], "expected one of 'prompt' and 'messages', got neither"),
        (
            [{"problem_id": "a", "prompt_ids": [1, "2"]}],
            "'prompt_ids': expected a list of integers",
        ),
        (
            [{"problem_id": "a", "prompt": "1"}] * 2,
            r"line 2 \(byte \d+\): problem_id 'a' is at .*p\.jsonl, line 1 \(byte 0\) already",
        ),
        ([{"problem_id": "a", "prompt": "123"}], "problem a: too long: 3"),
        ([], "there are no problems in"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(
    rows: list[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=message):
        read(write_jsonl(tmp_path / "p.jsonl", rows), most=2)


def test_text_that_the_tokenizer_refuses_is_named_like_the_rest(tmp_path: Path) -> None:
    """The demo's vocabulary has characters and no unknown token."""
    rows = [{"problem_id": "a", "prompt": "1é"}, {"problem_id": "b"}]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    tokenizer = TextTokenizer(build_tokenizer(64), prompt_format="raw", append_eos=False)
    with pytest.raises(Refused) as refused:
        read_problems(list_corpus([str(path)]), {}, lambda: tokenizer, lambda ids: None)
    _, first, second = str(refused.value).splitlines()
    assert "line 1 (byte 0): the tokenizer refuses it: " in first
    assert "expected one of 'prompt' and 'messages'" in second


def test_problems_with_other_names_are_told_how_to_name_them(tmp_path: Path) -> None:
    rows = [{"problem_id": "a", "prompt": "1", "solution": 1}]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(Refused, match=r"problem_id, prompt, solution\. .*columns: \{prompt: "):
        read(path, needed=["answer"])


def test_a_few_of_many_wrong_problems_are_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", ["{"] * 7)
    with pytest.raises(Refused, match="7 problems can't be answered") as refused:
        read(path)
    assert str(refused.value).count("not a line of JSON") == 5
    assert str(refused.value).endswith("and 2 more")


def test_units_are_the_row_groups_and_the_same_problems_give_the_same_bytes() -> None:
    rows = [{"problem_id": f"p{i}", "prompt_ids": [i], "row": "{}"} for i in range(7)]
    table = pa.Table.from_pylist(rows)
    data = encode_problems(table, 3)
    assert data == encode_problems(pa.Table.from_pylist(rows), 3)
    file = pq.ParquetFile(pa.BufferReader(data))
    units = list(problem_units("run/problems.parquet", b"", 7, 3, answers=10))
    assert [(u.start, u.stop, u.tokens) for u in units] == [(0, 3, 30), (3, 6, 30), (6, 7, 10)]
    for unit in units:
        group = file.read_row_group(unit.index)["problem_id"].to_pylist()
        assert group == [f"p{i}" for i in range(unit.start, unit.stop)]
