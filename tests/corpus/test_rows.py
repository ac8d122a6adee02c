"""Checked rows: one form for all that fit; a rejection says what was expected and what came."""

import math
from typing import Any

import pyarrow as pa
import pytest
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from dlogp_ray.config import CorpusEntry
from dlogp_ray.corpus.mapping import RowMap
from dlogp_ray.corpus.rows import RowRules, check_rows, unit_schema
from dlogp_ray.corpus.text import TextTokenizer
from dlogp_ray.demo.tokenizer import build_tokenizer
from dlogp_ray.errors import Refused, RowRejected

VOCAB_SIZE = 24
MAX_TOKENS = 10
GOOD = {"sample_id": "a", "prompt_ids": [2, 3], "response_ids": [4, 5, 6]}
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)


def rules(**carry: str) -> RowRules:
    return RowRules(VOCAB_SIZE, MAX_TOKENS, carry)


def text_tokenizer(template: str | None = None, **options: Any) -> TextTokenizer:
    """The character tokenizer: a character's id is 2 + its place in 0123456789+=abcdefghij."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return TextTokenizer(tokenizer, **({"prompt_format": "raw", "append_eos": False} | options))


def check(
    *rows: dict[str, Any] | RowRejected,
    rules: RowRules = rules(),  # noqa: B008  (frozen)
    tokenizer: TextTokenizer | None = None,
    columns: dict[str, str] | None = None,
) -> list[dict[str, Any]]:
    def loaded() -> TextTokenizer:
        assert tokenizer is not None, "only rows of text may ask for a tokenizer"
        return tokenizer

    row_map = RowMap(CorpusEntry(path="c", columns=columns or {}))
    made = row_map.rows([(10 * i, row) for i, row in enumerate(rows)], "file")
    table = check_rows(made, "file", rules, loaded, row_map.label)
    assert table.schema == unit_schema(rules)
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def rejection(row: dict[str, Any], **options: Any) -> tuple[str, str]:
    (found,) = check(row, **options)
    assert (found["prompt_ids"], found["response_ids"], found["response_mask"]) == ([], [], [])
    return found["status"], found["error"]


def test_a_whole_row() -> None:
    extra = {
        "group_id": 7,
        "generator": "rl",
        "temperature": 1,
        "top_p": 0.5,
        "reward": True,
        "response_mask": [1, 0, True],
        "ignored": object(),
    }
    assert check(GOOD | extra) == [
        {
            "sample_id": "a",
            "group_id": "7",
            "generator": "rl",
            "temperature": 1.0,
            "top_p": 0.5,
            "reward": 1.0,
            "from_text": False,
            "prompt_ids": [2, 3],
            "response_ids": [4, 5, 6],
            "response_mask": [True, False, True],
            "special_tokens": [],
            "status": "ok",
            "error": None,
            "source_file": "file",
            "source_offset": 0,
        }
    ]


def test_what_a_row_may_leave_out() -> None:
    (found,) = check(GOOD)
    assert found["response_mask"] == [True] * 3
    for name in ("group_id", "generator", "temperature", "top_p", "reward"):
        assert found[name] is None


def test_an_integer_is_a_sample_id() -> None:
    assert check(GOOD | {"sample_id": 12})[0]["sample_id"] == "12"


def test_a_rejected_row_keeps_its_place_and_what_was_read_before() -> None:
    bad = GOOD | {"sample_id": "b", "generator": "rl", "response_ids": []}
    first, second, third = check(GOOD, bad, GOOD | {"sample_id": "c"})
    assert [row["status"] for row in (first, second, third)] == ["ok", "empty_response", "ok"]
    assert (second["sample_id"], second["generator"]) == ("b", "rl")
    assert (second["source_file"], second["source_offset"]) == ("file", 10)


def test_a_malformed_line_keeps_its_error() -> None:
    (found,) = check(RowRejected("malformed", "not a line of JSON"))
    assert (found["status"], found["error"]) == ("malformed", "not a line of JSON")
    assert found["sample_id"] is None
    assert found["response_ids"] == []


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"sample_id": None}, "there is no 'sample_id'"),
        ({"response_ids": None}, "there is no 'response_ids', although the other"),
        ({"prompt_ids": None}, "there is no 'prompt_ids', although the other"),
        ({"prompt_ids": None, "response_ids": None}, "neither 'response_ids' nor 'response'"),
        (
            {"prompt_ids": None, "response_ids": None, "response": "1"},
            "expected one of 'prompt' and 'messages', got neither",
        ),
        (
            {
                "prompt_ids": None,
                "response_ids": None,
                "response": "1",
                "prompt": "2",
                "messages": [],
            },
            "expected one of 'prompt' and 'messages', got both",
        ),
    ],
)
def test_missing_column(row: dict[str, Any], error: str) -> None:
    status, found = rejection(GOOD | row)
    assert status == "missing_column"
    assert error in found


@pytest.mark.parametrize(
    ("row", "expected", "came"),
    [
        ({"response_ids": [1.0, 2.0]}, "a list of integers", "list [1.0, 2.0]"),
        ({"prompt_ids": [True]}, "a list of integers", "list [True]"),
        ({"response_ids": "45"}, "a list of integers", "str '45'"),
        ({"response_ids": [4, None]}, "a list of integers", "list [4, None]"),
        ({"reward": math.nan}, "a finite number", "float nan"),
        ({"reward": math.inf}, "a finite number", "float inf"),
        ({"reward": 1e39}, "within float32", "float 1e+39"),
        ({"reward": 10**400}, "within float32", "int 1000"),
        ({"temperature": "1.0"}, "a temperature from 0 on", "str '1.0'"),
        ({"temperature": -1.0}, "a temperature from 0 on", "float -1.0"),
        ({"temperature": True}, "a temperature from 0 on", "bool True"),
        ({"top_p": True}, "a share from 0 to 1", "bool True"),
        ({"temperature": math.nan}, "a temperature from 0 on", "float nan"),
        ({"top_p": [1]}, "a share from 0 to 1", "list [1]"),
        ({"top_p": 1.5}, "a share from 0 to 1", "float 1.5"),
        ({"response_mask": [1, 0.5, 0]}, "a list of true/false or 1/0", "list [1, 0.5, 0]"),
        ({"response_mask": [1, 2, 0]}, "a list of true/false or 1/0", "list [1, 2, 0]"),
        ({"response_mask": "110"}, "a list of true/false or 1/0", "str '110'"),
        ({"sample_id": 1.5}, "text or an integer", "float 1.5"),
        ({"sample_id": True}, "text or an integer", "bool True"),
        ({"sample_id": "\ud800"}, "valid Unicode", r"str '\ud800'"),
        ({"generator": ["rl"]}, "text or an integer", "list ['rl']"),
    ],
)
def test_wrong_type(row: dict[str, Any], expected: str, came: str) -> None:
    status, error = rejection(GOOD | row)
    assert status == "wrong_type"
    (name,) = row
    assert error.startswith(f"'{name}': expected ")
    assert expected in error
    assert f"got {came}" in error


def test_an_error_stays_short_whatever_came() -> None:
    _, error = rejection(GOOD | {"response_ids": ["x" * 1_000] * 1_000})
    assert len(error) < 300


def test_empty_response_and_empty_prompt() -> None:
    assert rejection(GOOD | {"response_ids": []}) == (
        "empty_response",
        "the response has no tokens",
    )
    status, error = rejection(GOOD | {"prompt_ids": []})
    assert status == "empty_prompt"
    assert "beginning-of-sequence" in error


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"response_ids": [4, -1]}, "response token 1 has id -1"),
        ({"response_ids": [4, 5, VOCAB_SIZE]}, f"response token 2 has id {VOCAB_SIZE}"),
        ({"prompt_ids": [10**30]}, f"prompt token 0 has id {10**30}"),
    ],
)
def test_id_outside_vocabulary(row: dict[str, Any], named: str) -> None:
    status, error = rejection(GOOD | row)
    assert status == "id_outside_vocabulary"
    assert named in error
    assert "the policies' ids are 0 to 23" in error


def test_the_last_id_is_inside() -> None:
    assert check(GOOD | {"response_ids": [0, VOCAB_SIZE - 1]})[0]["status"] == "ok"


def test_too_long_counts_prompt_and_response() -> None:
    full = GOOD | {"prompt_ids": [2] * 4, "response_ids": [3] * 6}  # 10 in all
    assert check(full)[0]["status"] == "ok"
    status, error = rejection(full | {"prompt_ids": [2] * 5})
    assert status == "too_long"
    assert error == "5 prompt and 6 response tokens; the policies take 10"


def test_no_limit_is_no_limit() -> None:
    unlimited = RowRules(VOCAB_SIZE, None, {})
    assert check(GOOD | {"response_ids": [3] * 1_000}, rules=unlimited)[0]["status"] == "ok"


@pytest.mark.parametrize("mask", [[1, 1], [1] * 4, []])
def test_mask_length(mask: list[int]) -> None:
    expected = f"'response_mask' has {len(mask)} values for 3 response tokens"
    assert rejection(GOOD | {"response_mask": mask}) == ("mask_length", expected)


def test_the_second_of_two_samples_with_one_id_is_rejected() -> None:
    # 1 and "1" are one id; an id that only a rejected row had is free.
    rejected = GOOD | {"sample_id": "z", "response_ids": []}
    ids = [GOOD | {"sample_id": value} for value in (1, "2", "1", "z")]
    found = check(rejected, *ids)
    statuses = ["empty_response", "ok", "ok", "duplicate_sample_id", "ok"]
    assert [row["status"] for row in found] == statuses
    assert found[3]["sample_id"] == "1"
    assert "'1'" in found[3]["error"]
    assert found[3]["response_ids"] == []


def test_columns_are_read_under_the_corpus_s_own_names() -> None:
    columns = {"sample_id": "id", "prompt_ids": "p", "response_ids": "r", "response_mask": "m"}
    theirs = {"id": "x", "p": [2], "r": [3, 4], "m": [0, 1], "sample_id": "not this"}
    (found,) = check(theirs, columns=columns)
    assert (found["sample_id"], found["response_ids"]) == ("x", [3, 4])
    assert found["response_mask"] == [False, True]
    _, error = rejection(GOOD, columns=columns)
    assert error == "there is no 'id'"  # an error uses the corpus's names, too


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("string", [("web", "web"), (["é"], '["\\u00e9"]'), ({"k": 1}, '{"k": 1}'), (None, None)]),
        ("int64", [(3, 3), (-(2**63), -(2**63)), (None, None)]),
        ("float64", [(0.5, 0.5), (3, 3.0), (None, None)]),
        ("bool", [(True, True), (None, None)]),
        ("floats", [([-0.5, None, -1], [-0.5, None, -1.0]), (None, None)]),
    ],
)
def test_carried_values(kind: str, values: list[tuple[Any, Any]]) -> None:
    for came, expected in values:
        (found,) = check(GOOD | {"x": came}, rules=rules(x=kind))
        assert (found["status"], found["x"]) == ("ok", expected)
    assert check(GOOD, rules=rules(x=kind))[0]["x"] is None


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("string", [3, True, 0.5, "\udc00", ["\udc00"]]),
        ("int64", [0.5, True, "3", 2**63]),
        ("float64", [True, "0.5", 10**400]),
        ("bool", [1, "true"]),
    ],
)
def test_carried_values_of_another_type(kind: str, values: list[Any]) -> None:
    for came in values:
        status, error = rejection(GOOD | {"x": came}, rules=rules(x=kind))
        assert status == "wrong_type"
        assert error.startswith("'x': expected ")
        assert f"got {type(came).__name__}" in error


@pytest.mark.parametrize(
    ("value", "status", "said"),
    [
        ([-0.5, -1.0], "other_length", "'x' has 2 values for 3 response tokens"),
        ([-0.5, "a", -1.0], "wrong_type", "'x': expected numbers, one a response token, or null"),
        ([True, False, True], "wrong_type", "got bool True"),
        (-0.5, "wrong_type", "'x': expected floats"),
    ],
)
def test_a_list_with_a_value_a_token_has_their_number(value: Any, status: str, said: str) -> None:
    found = check(GOOD | {"x": value}, rules=rules(x="floats"))[0]
    assert (found["status"], found["x"]) == (status, None)
    assert said in found["error"]


@pytest.mark.parametrize(
    ("field", "said", "rejected"),
    [
        ("expected_prompt_length", 2, False),
        ("expected_prompt_length", 3, True),
        ("expected_response_length", 3, False),
        ("expected_response_length", 4, True),
        ("expected_response_length", "3", True),
    ],
)
def test_lengths_that_are_known_are_looked_at(field: str, said: Any, rejected: bool) -> None:
    (found,) = check(GOOD | {field: said})
    assert found["status"] == ("other_length" if rejected else "ok")
    assert not rejected or f"{field!r} says {said!r}, and there are " in found["error"]


TEXT = {"sample_id": "t", "prompt": "1+2=", "response": "3a"}
# ids of the characters: "0" is 2, so "1" is 3, "2" 4, "3" 5; "+" 12, "=" 13, "a" 14; <eos> is 1
PROMPT_IDS, RESPONSE_IDS = [3, 12, 4, 13], [5, 14]


@pytest.mark.parametrize(("append_eos", "end"), [(False, []), (True, [1])])
def test_text_goes_through_the_tokenizer(append_eos: bool, end: list[int]) -> None:
    (found,) = check(TEXT, tokenizer=text_tokenizer(append_eos=append_eos))
    assert (found["status"], found["from_text"]) == ("ok", True)
    assert (found["prompt_ids"], found["response_ids"]) == (PROMPT_IDS, RESPONSE_IDS + end)
    assert found["response_mask"] == [True] * len(RESPONSE_IDS + end)


def test_ids_win_over_text() -> None:
    (found,) = check(GOOD | TEXT)
    assert (found["prompt_ids"], found["from_text"]) == ([2, 3], False)


def test_an_empty_text_is_an_empty_response_even_with_an_end_of_sequence() -> None:
    tokenizer = text_tokenizer(append_eos=True)
    assert rejection(TEXT | {"response": ""}, tokenizer=tokenizer)[0] == "empty_response"
    assert rejection(TEXT | {"prompt": ""}, tokenizer=tokenizer)[0] == "empty_prompt"


def test_messages_go_through_the_chat_template() -> None:
    # The template joins the contents and puts "=" (13) where the answer begins.
    turns = [{"role": "user", "content": "1+"}, {"role": "user", "content": "2"}]
    row = {"sample_id": "m", "messages": turns, "response": "3a"}
    (found,) = check(row, tokenizer=text_tokenizer(TEMPLATE))
    assert (found["prompt_ids"], found["response_ids"]) == (PROMPT_IDS, RESPONSE_IDS)


def test_prompt_format_chat_makes_the_prompt_one_user_message() -> None:
    tokenizer = text_tokenizer(TEMPLATE, prompt_format="chat")
    (found,) = check(TEXT | {"prompt": "1+2"}, tokenizer=tokenizer)
    assert found["prompt_ids"] == PROMPT_IDS


@pytest.mark.parametrize("column", ["prompt", "response"])
def test_text_that_the_tokenizer_refuses_is_a_rejected_row(column: str) -> None:
    """The demo's vocabulary has characters and no unknown token."""
    tokenizer = TextTokenizer(build_tokenizer(64), prompt_format="raw", append_eos=False)
    row = {"sample_id": "t", "prompt": "1+2=", "response": "#3"}
    (found,) = check(row, tokenizer=tokenizer)
    assert found["status"] == "ok"
    status, error = rejection(row | {column: "1é"}, tokenizer=tokenizer)
    assert (status, "the tokenizer refuses it: " in error) == ("tokenizer", True)


def test_messages_without_a_template_or_against_it() -> None:
    row = {"sample_id": "m", "messages": [{"role": "user", "content": "1"}], "response": "3"}
    status, error = rejection(row, tokenizer=text_tokenizer())
    assert (status, "no template" in error) == ("chat_template", True)
    refusing = text_tokenizer("{{ raise_exception('roles must alternate') }}")
    status, error = rejection(row, tokenizer=refusing)
    assert (status, "roles must alternate" in error) == ("chat_template", True)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"response": 3}, "'response': expected text, got int 3"),
        ({"prompt": ["1"]}, "'prompt': expected text, got list ['1']"),
        (
            {"prompt": None, "messages": [{"role": "user"}]},
            "'messages': expected messages of role and content",
        ),
        ({"prompt": "\ud800"}, "'prompt': expected valid Unicode"),
        ({"response": "\ud800"}, "'response': expected valid Unicode"),
        (
            {"prompt": None, "messages": "hi"},
            "'messages': expected a list of messages, got str 'hi'",
        ),
        ({"prompt": None, "messages": ["hi"]}, "'messages': expected a list of messages, got list"),
        (
            {"prompt": None, "messages": [{"role": "user", "content": "\ud800"}]},
            "'messages': expected valid Unicode",
        ),
    ],
)
def test_text_of_a_wrong_type(row: dict[str, Any], named: str) -> None:
    status, error = rejection(TEXT | row, tokenizer=text_tokenizer(TEMPLATE))
    assert status == "wrong_type"
    assert named in error


def test_a_tokenizer_that_lacks_what_the_job_asks_is_refused() -> None:
    with pytest.raises(Refused, match="no chat template"):
        text_tokenizer(prompt_format="chat")
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(Refused, match="no end-of-sequence token"):
        TextTokenizer(tokenizer, prompt_format="raw", append_eos=True)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)
names = unit_schema(rules()).names[:6]  # sample_id to reward
names += ["prompt_ids", "response_ids", "response_mask", "prompt", "messages", "response", "x"]
TOKENIZER = text_tokenizer(TEMPLATE)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(names), anything), st.sampled_from(["string", "float64"]))
def test_whatever_a_row_holds_it_comes_out_and_its_neighbours_are_scored(
    changes: dict[str, Any], kind: str
) -> None:
    text = {"sample_id": "b", "prompt": "1", "response": "2"}
    both = [base | changes | {"sample_id": base["sample_id"]} for base in (GOOD, text)]
    rows = [{**GOOD, "sample_id": "first"}, changes, *both, {**GOOD, "sample_id": "last"}]
    found = check(*rows, rules=rules(x=kind), tokenizer=TOKENIZER)
    assert [row["source_offset"] for row in found] == [0, 10, 20, 30, 40]
    assert (found[0]["status"], found[4]["status"]) == ("ok", "ok")
    for row in found:
        assert (row["status"] == "ok") == (row["error"] is None) == bool(row["response_ids"])
        assert len(row["response_mask"]) == len(row["response_ids"])


def test_a_value_nested_deeper_than_python_walks_is_rejected_alone() -> None:
    value: list[Any] = []
    for _ in range(2_000):  # twice Python's limit; json.loads itself stops near it
        value = [value]
    status, error = rejection(GOOD | {"x": value}, rules=rules(x="string"))
    assert (status, "nested less deep" in error) == ("wrong_type", True)
    message = TEXT | {"prompt": None, "messages": [{"role": "user", "content": value}]}
    status, error = rejection(message, tokenizer=TOKENIZER)
    assert (status, "nested less deep" in error) == ("wrong_type", True)
    assert rejection(GOOD | {"response_ids": value})[0] == "wrong_type"


def test_the_schema_ends_with_the_carried_columns() -> None:
    fields = list(unit_schema(rules(x="int64", y="string")))[-2:]
    assert fields == [pa.field("x", pa.int64()), pa.field("y", pa.string())]
