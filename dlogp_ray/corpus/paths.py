"""Where a value is in a record: a name, or a JMESPath such as ``doc.query`` or ``resps[0][0]``."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError

ALL = "*"


@lru_cache(maxsize=1_024)
def _compiled(path: str) -> Any:
    """None where it is no path, but perhaps a name."""
    try:
        return jmespath.compile(path)
    except JMESPathError:
        return None


def value_at(record: Mapping[str, Any], path: str) -> Any:
    """What is there; None where nothing is. What is a name in the record is meant as one."""
    if path in record:
        return record[path]
    compiled = _compiled(path)
    try:
        return None if compiled is None else compiled.search(record)
    except JMESPathError:  # a function of what is there, which is of another type here
        return None


def with_value(record: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The record with another value where names lead, one below the other; the rest is shared."""
    name, dot, below = (path, "", "") if path in record else path.partition(".")
    return {**record, name: with_value(record[name], below, value) if dot else value}


@lru_cache(maxsize=1_024)
def roots(path: str) -> frozenset[str]:
    """The names at the top of a record that a path may look at, itself among them.

    ``ALL`` is among them where it may look at any.
    """
    compiled = _compiled(path)
    return frozenset({path} | (_first_names(compiled.parsed) if compiled else set()))


def _first_names(node: Any) -> set[str]:
    """Names in a parsed path that stand behind no other."""
    kind, children = node["type"], node.get("children", [])
    if kind == "field":
        return {node["value"]}
    if kind in ("identity", "current"):
        return {ALL}
    if kind in (
        "subexpression",
        "index_expression",
        "projection",
        "filter_projection",
        "pipe",
        "value_projection",
        "flatten",
    ):
        children = children[:1]  # the others look at what the first finds
    names: set[str] = set()
    for child in children:
        names |= _first_names(child) if isinstance(child, dict) else set()
    return names
