"""What a corpus row must look like, and the one form that every row is brought to.

A row that does not fit is rejected alone, with a status and an error that say what was expected
and what came.
"""

import contextlib
import json
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from dlogp_ray.amounts import amount
from dlogp_ray.corpus.reading import RawRow
from dlogp_ray.corpus.text import TextIds, TextTokenizer
from dlogp_ray.errors import RowRejected
from dlogp_ray.status import Status
from dlogp_ray.tables.scores import CARRY_TYPES

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_REWARD = "a finite number within float32, or true or false"
_BOUNDS = {
    "temperature": (0.0, _FLOAT32_MAX, "a temperature from 0 on"),
    "top_p": (0.0, 1.0, "a share from 0 to 1"),
    "reward": (-_FLOAT32_MAX, _FLOAT32_MAX, _REWARD),
}
"""Column of a number -> lowest, highest, and that in words."""

_FIELDS = (
    pa.field("sample_id", pa.string()),
    pa.field("group_id", pa.string()),
    pa.field("generator", pa.string()),
    pa.field("temperature", pa.float32()),
    pa.field("top_p", pa.float32()),
    pa.field("reward", pa.float32()),
    pa.field("from_text", pa.bool_(), nullable=False),
    pa.field("prompt_ids", pa.list_(pa.int32())),
    pa.field("response_ids", pa.list_(pa.int32())),
    pa.field("response_mask", pa.list_(pa.bool_())),
    pa.field("special_tokens", pa.list_(pa.string())),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("source_file", pa.string(), nullable=False),
    pa.field("source_offset", pa.int64(), nullable=False),
)


@dataclass(frozen=True)
class RowRules:
    """What the rows of a job are checked against.

    Attributes:
        vocab_size: Ids must be below it: the narrowest policy's.
        max_tokens: Prompt and response together: the shortest policy's limit, None for none.
        carry: Carried column -> its type, a key of ``CARRY_TYPES``.
    """

    vocab_size: int
    max_tokens: int | None
    carry: Mapping[str, str]


def unit_schema(rules: RowRules) -> pa.Schema:
    """Schema of a unit's checked rows; ``special_tokens`` as in ``tables.special_tokens``."""
    carried = [pa.field(name, CARRY_TYPES[kind]) for name, kind in rules.carry.items()]
    return pa.schema([*_FIELDS, *carried])


def check_rows(
    rows: Iterable[RawRow],
    source_file: str,
    rules: RowRules,
    text_tokenizer: Callable[[], TextTokenizer],
    label: Callable[[str], str] = str,
) -> pa.Table:
    """Bring all rows of a unit to one form; a rejected row keeps its place, with empty lists.

    Args:
        rows: Under the standard names, with their offsets.
        source_file: The file they come from.
        rules: What they are checked against.
        text_tokenizer: Called for rows that hold text.
        label: What the corpus calls a standard column, for errors.

    Returns:
        One row for each that came, by ``unit_schema``.
    """
    checked: list[dict[str, Any]] = []
    seen: set[str] = set()
    for offset, raw in rows:
        row: dict[str, Any] = {"from_text": False, "status": Status.OK, "error": None}
        try:
            if isinstance(raw, RowRejected):
                raise raw
            _fill(row, raw, rules, text_tokenizer, label)
            if row["sample_id"] in seen:
                raise RowRejected(
                    Status.DUPLICATE_SAMPLE_ID,
                    f"sample_id {row['sample_id']!r} stands earlier in the same unit",
                )
            seen.add(row["sample_id"])
        except RowRejected as rejection:
            row |= {"status": rejection.status, "error": rejection.error}
            lists = ("prompt_ids", "response_ids", "response_mask", "special_tokens")
            row |= {name: [] for name in lists}
            row |= {name: None for name, kind in rules.carry.items() if kind == "floats"}
        row |= {"source_file": source_file, "source_offset": offset}
        checked.append(row)
    return pa.Table.from_pylist(checked, schema=unit_schema(rules))


def count_special_tokens(rows: pa.Table) -> dict[str, int]:
    """Rows of a unit by what is special about them, as ``tables.special_tokens`` names it."""
    return dict(Counter(chain.from_iterable(rows["special_tokens"].to_pylist())))


def _fill(
    row: dict[str, Any],
    raw: dict[str, Any],
    rules: RowRules,
    text_tokenizer: Callable[[], TextTokenizer],
    label: Callable[[str], str],
) -> None:
    """Fill ``row`` field by field, so that a rejected row keeps what was read before."""
    value = raw.get
    row["sample_id"] = identifier(label("sample_id"), value("sample_id"))
    if row["sample_id"] is None:
        raise RowRejected(Status.MISSING_COLUMN, f"there is no {label('sample_id')!r}")
    for name in ("group_id", "generator"):
        row[name] = identifier(label(name), value(name))
    for name, bounds in _BOUNDS.items():
        row[name] = _number(label(name), value(name), *bounds)
    for name, kind in rules.carry.items():
        row[name] = _carried(name, raw.get(name), kind)

    prompt, response, row["from_text"] = _ids(value, label, text_tokenizer)
    prompt_ids, response_ids = prompt.ids, response.ids
    if not response_ids:
        raise RowRejected(Status.EMPTY_RESPONSE, "the response has no tokens")
    if not prompt_ids:
        raise RowRejected(
            Status.EMPTY_PROMPT,
            "the prompt has no tokens, so that nothing predicts the response's first one; put the "
            "beginning-of-sequence token there",
        )
    for name, ids in (("prompt", prompt_ids), ("response", response_ids)):
        if min(ids) < 0 or max(ids) >= rules.vocab_size:
            position, token = next(
                (i, t) for i, t in enumerate(ids) if not 0 <= t < rules.vocab_size
            )
            raise RowRejected(
                Status.ID_OUTSIDE_VOCABULARY,
                f"{name} token {position} has id {token}; the policies' ids are 0 to "
                f"{rules.vocab_size - 1}",
            )
    length = len(prompt_ids) + len(response_ids)
    if rules.max_tokens is not None and length > rules.max_tokens:
        raise RowRejected(
            Status.TOO_LONG,
            f"{len(prompt_ids)} prompt and {len(response_ids)} response tokens; the policies take "
            f"{rules.max_tokens}",
        )
    for name, ids in (("prompt", prompt_ids), ("response", response_ids)):
        name = f"expected_{name}_length"
        if (said := value(name)) is not None and said != len(ids):
            raise RowRejected(
                Status.OTHER_LENGTH,
                f"{label(name)!r} says {said!r}, and there are {amount(len(ids), 'id')}: the list "
                "was cut, or the text is tokenised otherwise than when it was sampled",
            )
    mask = _mask(label("response_mask"), value("response_mask"), len(response_ids))
    for name, kind in rules.carry.items():
        values = row[name] if kind == "floats" else None
        if values is not None and len(values) != len(response_ids):
            raise RowRejected(
                Status.OTHER_LENGTH,
                f"{name!r} has {amount(len(values), 'value')} for {len(response_ids)} response "
                "tokens",
            )
    row |= {"prompt_ids": prompt_ids, "response_ids": response_ids, "response_mask": mask}
    row["special_tokens"] = [*prompt.special, *response.special]


def _ids(
    value: Callable[[str], Any],
    label: Callable[[str], str],
    text_tokenizer: Callable[[], TextTokenizer],
) -> tuple[TextIds, TextIds, bool]:
    """Prompt, response, and whether they come from text."""
    if value("prompt_ids") is not None or value("response_ids") is not None:
        pair = []
        for name in ("prompt_ids", "response_ids"):
            if value(name) is None:
                raise RowRejected(
                    Status.MISSING_COLUMN,
                    f"there is no {label(name)!r}, although the other list of ids is there",
                )
            pair.append(TextIds(id_list(label(name), value(name))))
        return pair[0], pair[1], False

    response = value("response")
    if response is None:
        raise RowRejected(
            Status.MISSING_COLUMN,
            f"there is neither {label('response_ids')!r} nor {label('response')!r}",
        )
    if not isinstance(response, str):
        raise _wrong_type(label("response"), "text", response)
    _check_unicode(label("response"), response)
    prompt = text_prompt(value, label, text_tokenizer)
    # An empty text has no tokens of its own: an appended end of sequence does not make it one.
    return prompt, text_tokenizer().response(response) if response else TextIds([]), True


def text_prompt(
    value: Callable[[str], Any],
    theirs: Callable[[str], str],
    text_tokenizer: Callable[[], TextTokenizer],
) -> TextIds:
    """Ids of a row's ``prompt`` or ``messages``.

    Args:
        value: Of a standard column.
        theirs: What the row calls a standard column.
        text_tokenizer: Called for what turns text into ids.

    Raises:
        RowRejected: It has neither or both, or one of the wrong kind.
    """
    prompt, messages = value("prompt"), value("messages")
    if (prompt is None) == (messages is None):
        came = "neither" if prompt is None else "both"
        raise RowRejected(
            Status.MISSING_COLUMN,
            f"expected one of {theirs('prompt')!r} and {theirs('messages')!r}, got {came}",
        )
    if messages is None:
        if not isinstance(prompt, str):
            raise _wrong_type(theirs("prompt"), "text", prompt)
        _check_unicode(theirs("prompt"), prompt)
        return text_tokenizer().prompt(prompt)
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise _wrong_type(theirs("messages"), "a list of messages", messages)
    for message in messages:
        if "role" not in message or not {"content", "tool_calls"} & message.keys():
            raise _wrong_type(theirs("messages"), "messages of role and content", message)
    _check_unicode(theirs("messages"), messages)
    tools = value("tools")
    if tools is not None and not isinstance(tools, list):
        raise _wrong_type(theirs("tools"), "a list of tools", tools)
    _check_unicode(theirs("tools"), tools)
    return text_tokenizer().messages(messages, tools)


def _wrong_type(name: str, expected: str, came: Any) -> RowRejected:
    shown = reprlib.repr(came)  # bounded: a value may be long, or nested deeper than repr() goes
    return RowRejected(
        Status.WRONG_TYPE, f"{name!r}: expected {expected}, got {type(came).__name__} {shown}"
    )


def _check_unicode(name: str, value: Any) -> None:
    r"""Reject half a surrogate pair, which JSON can spell (``"\ud800"``) and nothing can store."""
    text = value if isinstance(value, str) else None
    try:
        (json.dumps(value, ensure_ascii=False, default=str) if text is None else text).encode()
    except UnicodeEncodeError:
        raise _wrong_type(name, "valid Unicode", value) from None
    except RecursionError:
        raise _wrong_type(name, "a value nested less deep", value) from None


def id_list(name: str, value: Any) -> list[int]:
    """A list of ids as it came.

    Raises:
        RowRejected: It is none.
    """
    if not isinstance(value, list):
        raise _wrong_type(name, "a list of integers", value)
    for item in value:
        if type(item) is not int:  # a bool is an int, but not an id
            raise _wrong_type(name, "a list of integers", value)
    return value


def _mask(name: str, value: Any, length: int) -> list[bool]:
    if value is None:
        return [True] * length
    if not isinstance(value, list) or not all(
        type(v) in (bool, int) and v in (0, 1) for v in value
    ):
        raise _wrong_type(name, "a list of true/false or 1/0", value)
    if len(value) != length:
        raise RowRejected(
            Status.MASK_LENGTH,
            f"{name!r} has {amount(len(value), 'value')} for {length} response tokens",
        )
    return [bool(v) for v in value]


def identifier(name: str, value: Any) -> str | None:
    """A name as text, None where none came.

    Raises:
        RowRejected: It is neither text nor an integer.
    """
    if value is None:
        return None
    if isinstance(value, str):
        _check_unicode(name, value)
        return value
    if type(value) is int:
        return str(value)
    raise _wrong_type(name, "text or an integer", value)


def _number(name: str, value: Any, low: float, high: float, expected: str) -> float | None:
    if value is None:
        return None
    # A comparison, for math.isfinite() fails on integers that no float holds.
    right = isinstance(value, bool) and expected == _REWARD  # or wrong
    if (right or type(value) in (int, float)) and low <= value <= high:
        return float(value)
    raise _wrong_type(name, expected, value)


def _float(name: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer that no float holds
            return float(value)
    raise _wrong_type(name, "numbers, one a response token, or null", value)


def _carried(name: str, value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "string":
        if isinstance(value, str | list | dict):
            _check_unicode(name, value)
            return value if isinstance(value, str) else json.dumps(value, default=str)
    elif kind == "floats":
        if isinstance(value, list):
            return [None if v is None else _float(name, v) for v in value]
    elif kind == "bool" and isinstance(value, bool):
        return value
    elif kind == "int64" and type(value) is int and -(2**63) <= value < 2**63:
        return value
    elif kind == "float64" and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer that no float holds
            return float(value)
    raise _wrong_type(name, kind, value)
