"""Files that the programs themselves wrote map to the texts that they were made from.

``written/make_*.py`` makes them, each in an environment that has its program.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import make_tokenizer

from dlogp_ray.config import CorpusEntry
from dlogp_ray.corpus.columns import check_columns, head
from dlogp_ray.corpus.rows import RowRules, check_rows
from dlogp_ray.corpus.sources import list_sources
from dlogp_ray.corpus.text import TextTokenizer

WRITTEN = Path(__file__).parent / "written"
CHARACTERS = "0123456789+=abcdefghij"
"""Of the tests' tokenizer, from id 2 on."""
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)


def ids(text: str) -> list[int]:
    return [2 + CHARACTERS.index(character) for character in text]


def checked(folder: str, **fields: Any) -> pa.Table:
    """All rows of a folder's files, in order, as the tests' policies would see them."""
    entry = CorpusEntry.model_validate({"path": str(WRITTEN / folder)} | fields)
    files, maps = list_sources([entry])
    check_columns(files, maps)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    (row_map,) = maps
    texts = TextTokenizer(tokenizer, prompt_format=row_map.prompts.prompt_format, append_eos=False)
    rules = RowRules(len(tokenizer), None, {})
    tables = [
        check_rows(
            row_map.rows(head(file, 2**20), file.uri),
            file.uri,
            rules,
            lambda: texts,
            row_map.label,
        )
        for file in files
    ]
    return pa.concat_tables(tables)


def test_trl() -> None:
    """Conversations rendered again; answers have lost their special tokens (ids 0 and 1)."""
    rows = checked("trl", format="trl").to_pylist()
    seen = json.loads((WRITTEN / "trl/seen.json").read_text())
    assert len(rows) == len(seen) == 8
    answered = {
        (*ids(one["asked"] + "="), -1, *(t for t in one["response_ids"] if t > 1)): one
        for one in seen
    }
    for row in rows:
        if row["status"] == "empty_response":  # an answer of its end alone
            continue
        assert row["status"] == "ok", row["error"]
        one = answered[(*row["prompt_ids"], -1, *row["response_ids"])]
        digits = sum(2 <= token <= 11 for token in one["response_ids"])
        assert row["reward"] == float(digits)
    assert rows[0]["sample_id"] == "completions_00001.parquet:0"


def test_lm_eval() -> None:
    """Two documents, each answered twice by lm-eval's dummy model, at the task's temperature."""
    rows = checked("lm_eval", format="lm_eval").to_pylist()
    assert [row["sample_id"] for row in rows] == ["sums/0/0", "sums/0/1", "sums/1/0", "sums/1/1"]
    assert [row["group_id"] for row in rows] == ["sums/0", "sums/0", "sums/1", "sums/1"]
    prompts = [ids("1+2="), ids("1+2="), ids("34+5="), ids("34+5=")]
    assert [row["prompt_ids"] for row in rows] == prompts
    assert {row["status"] for row in rows} == {"ok"}
    assert [row["temperature"] for row in rows] == [pytest.approx(0.7)] * 4
    assert {len(row["response_ids"]) for row in rows} == {len("lol")}
    assert {row["reward"] for row in rows} == {None}  # the metric is of one of two answers


def test_a_filter_is_chosen_by_a_condition(tmp_path: Path) -> None:
    (written,) = (WRITTEN / "lm_eval").glob("*.jsonl")
    text = written.read_text()
    other = text.replace('"filter": "first"', '"filter": "last"')
    (tmp_path / written.name).write_text(text + other)
    twice = checked(str(tmp_path), format="lm_eval")
    assert twice["status"].to_pylist().count("duplicate_sample_id") == 4
    one = checked(str(tmp_path), format="lm_eval", where="filter = 'first'")
    assert one["status"].to_pylist() == ["ok"] * 4
