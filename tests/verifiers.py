"""A verifier that workers load from its file."""

from collections.abc import Mapping
from typing import Any


def short(problem: Mapping[str, Any], response: str) -> bool:
    """Some answers are right, and one problem can't be graded."""
    if problem["problem_id"] == "p3":
        raise ZeroDivisionError("no answer is known")
    return len(response) <= int(problem["answer"])
