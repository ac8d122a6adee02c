"""What is wrong with a config, in words for people: what was expected, what came, an example."""

import json
import reprlib
from collections.abc import Iterator, Mapping
from datetime import date
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dlogp_ray.addresses import carries_credentials

_EXPECTED = {
    "dict": "expected fields with values",
    "model": "expected fields with values",
    "string": "expected text",
    "int": "expected a whole number",
    "float": "expected a number",
    "bool": "expected true or false",
    "tuple": "expected a list",
    "list": "expected a list",
    "finite": "expected a finite number",
    "invalid_key": "expected text for the name of a field",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected {ge} or more",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected {le} or less",
    "too_short": "expected {min_length} or more of them",
    "string_too_short": "expected {min_length} or more characters",
    "literal": "expected {expected}",
    "union_tag_not_found": "expected a name, or fields with a {discriminator}",
    "union_tag_invalid": "expected one of {expected_tags}",
}
"""What pydantic calls an error, or a type -> what was expected; with values of its own."""
_OF_ANOTHER_TYPE = ("type", "attributes_type", "parsing", "from_float", "number", "error")
"""How its errors go on that say no more than that a value is not of a type."""
_NAMES = {dict: "fields", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
_Place = tuple[int | str, ...]
_SHOWN = 100
"""Characters of a value."""


def explain(error: ValidationError, model: type[BaseModel], values: object) -> list[str]:
    """A line for each problem, and one for the fields that a model has where a name is unknown.

    Args:
        error: What pydantic found.
        model: That was to be made.
        values: Of its fields, as they came.
    """
    problems: dict[_Place, Mapping[str, Any]] = {}
    for raised in error.errors():
        problems.setdefault(_place(raised), raised)
    # Where an item of a list is wrong, pydantic finds the list too short as well.
    inner = {place[:end] for place in problems for end in range(len(place))}
    lines, fields = [], {}
    for place, problem in problems.items():
        if place in inner and place:
            continue
        where = _spelled(place, values)
        if problem["type"] == "extra_forbidden":
            owner = _owner(place, model)
            near = get_close_matches(str(place[-1]), owner.model_fields, n=1)
            lines.append(f"{where}: unknown field" + (f"; did you mean {near[0]}?" if near else ""))
            if not near:
                fields[owner] = f"the fields are {', '.join(owner.model_fields)}"
        else:
            lines.append(f"{where}: {_explain(place, problem, model)}".removeprefix(": "))
    return [*lines, *fields.values()]


def _place(problem: Mapping[str, Any]) -> _Place:
    """Names and numbers that lead to it, without the types of a field that may have several."""
    return tuple(part for part in problem["loc"] if "[" not in str(part))


def _spelled(place: _Place, values: object) -> str:
    """A place as people name it: ``rules (item 2).rates``; what came alone is no item of a list."""
    spelled = ""
    for part in place:
        if isinstance(values, str):  # it came alone where fields may stand
            continue
        if not isinstance(part, int) or isinstance(values, dict):
            spelled += f".{part}" if spelled else str(part)
        elif isinstance(values, list | tuple):
            spelled += f" (item {part + 1})"
        else:
            continue
        try:
            values = values[part]  # type: ignore[index]
        except (LookupError, TypeError):
            values = None
    return spelled


def shown(value: object) -> str:
    """A value as a job file has it; a long one is cut."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        text = reprlib.repr(value)
    return cut(text)


def cut(text: str) -> str:
    """As much of a text as is shown."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def named(value: object) -> str:
    """What kind of value came, in a job file's words."""
    return _NAMES.get(type(value), "a number" if isinstance(value, int | float) else "a value")


def in_words(problem: Mapping[str, Any]) -> str:
    """What was expected."""
    kind = problem["type"]
    if kind == "missing":
        return "is required and missing"
    stem, _, rest = kind.partition("_")
    words = _EXPECTED.get(kind) or (_EXPECTED.get(stem) if rest in _OF_ANOTHER_TYPE else None)
    if words is None:
        return str(problem["msg"].removeprefix("Value error, ").removesuffix("."))
    context = problem.get("ctx", {}).items()
    return words.format(**{k: f"{v:g}" if isinstance(v, float) else v for k, v in context})


def _explain(place: _Place, problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    words, came = in_words(problem), problem["input"]
    field = model.model_fields.get(str(place[0])) if place else None
    fits = len(place) == 1 or problem["type"] in ("dict_type", "model_type")
    example = f", as in {field.examples[0]}" if field and field.examples and fits else ""
    if problem["type"] == "missing" or not place:
        return words + example
    if carries_credentials(repr(came)):
        return words
    quoted = ""
    if problem["type"] == "string_type" and isinstance(came, int | float | date):
        quoted = f"; in quotes it is text: {shown(str(came))}"
    return f"{words}{example} (got {shown(came)}){quoted}"


def _owner(where: _Place, model: type[BaseModel]) -> type[BaseModel]:
    """The model whose field is unknown."""
    owner, parts = model, list[type[BaseModel]]()
    for name in where[:-1]:
        tagged = {_tag(part): part for part in parts}
        parts = list(_parts(owner, name)) or parts
        owner = tagged.get(name, next(_parts(owner, name), owner))
    return owner


def _tag(model: type[BaseModel]) -> object:
    """What tells a model from others in its place: its own ``scheme``."""
    field = model.model_fields.get("scheme")
    return None if field is None else field.default


def _parts(model: type[BaseModel], name: object) -> Iterator[type[BaseModel]]:
    """The models within a field's annotation, for fields that have fields of their own."""
    left = [model.model_fields[name].annotation] if name in model.model_fields else []
    while left:
        kind = left.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
        left += get_args(kind)
