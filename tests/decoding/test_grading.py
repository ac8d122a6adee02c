"""Verifiers: what is right, and what becomes of one that fails."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlogp_ray.decoding import grading
from dlogp_ray.decoding.grading import (
    Grade,
    exact_match,
    grade,
    load_verifier,
    math_verify,
    verifier_hash,
)


@pytest.mark.parametrize(
    ("response", "right"), [("936", True), (" 936\n", True), ("9 36", False), ("", False)]
)
def test_exact_match(response: str, right: bool) -> None:
    assert exact_match({"answer": 936}, response) is right


@pytest.mark.parametrize(
    ("answer", "response", "right"),
    [
        (r"\frac{1}{2}", r"So it is $\boxed{0.5}$.", True),
        ("2", r"\boxed{1} is wrong; it is $\boxed{1+1}$", True),
        ("x+1", r"Thus $\boxed{1+x}$", True),
        ("2", r"it is $\boxed{3}$", False),
        ("2", "no idea", False),
    ],
)
def test_math_verify(answer: str, response: str, right: bool) -> None:
    assert math_verify({"answer": answer}, response) is right


def test_a_verifier_that_raises_leaves_no_grade_and_says_why() -> None:
    def broken(problem: Mapping[str, Any], response: str) -> bool:
        raise ZeroDivisionError("division by zero")

    assert grade(broken, {}, "1") == Grade(None, "ZeroDivisionError: division by zero")
    assert grade(exact_match, {}, "1") == Grade(None, "KeyError: 'answer'")
    assert grade(exact_match, {"answer": "1"}, "1") == Grade(True)

    def leaves(problem: Mapping[str, Any], response: str) -> bool:
        raise SystemExit(3)

    assert grade(leaves, {}, "1") == Grade(None, "SystemExit: 3")


@pytest.mark.parametrize(
    ("said", "right"),
    [(True, True), (0, False), (1.0, True), (np.bool_(False), False), (torch.tensor(1), True)],
)
def test_yes_and_no_of_any_numeric_type(said: Any, right: bool) -> None:
    assert grade(lambda problem, response: said, {}, "1") == Grade(right)


@pytest.mark.parametrize("said", ["no", None, 0.5, float("nan"), 2, np.array([1, 1])])
def test_what_is_neither_yes_nor_no_is_no_grade(said: Any) -> None:
    found = grade(lambda problem, response: said, {}, "1")
    assert found.correct is None
    assert found.error


def test_the_file_of_a_verifier_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def yes(problem, response): return True")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert verifier_hash(f"{path}:yes") == expected
    path.write_text("class Any:\n    def __call__(self, *_): return True\nany_ = Any()")
    assert verifier_hash(f"{path}:any_") != expected
    assert verifier_hash("exact_match") is None
    assert verifier_hash("sys:intern") is None  # built in
    module = hashlib.sha256(Path(grading.__file__).read_bytes()).hexdigest()
    assert verifier_hash("dlogp_ray.decoding.grading:math_verify") == module


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("levenshtein", "no verifier is called 'levenshtein'; there are exact_match, math_verify"),
        (
            "/nowhere/mine.py:grade",
            "verifier /nowhere/mine.py:grade: there is no file /nowhere/m",
        ),
        ("no_such_package:grade", "verifier no_such_package:grade: .*No module named"),
        ("math:cosine", "verifier math:cosine: math has no function 'cosine'; it has c"),
        ("math:pi", "verifier math:pi: expected a function"),
    ],
)
def test_verifiers_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_verifier(name)


@pytest.mark.parametrize("code", ["1/0", "import sys; sys.exit(3)", "def (:"])
def test_a_verifier_s_file_that_fails_is_no_verifier(code: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ValueError, match=r"verifier .*mine\.py:grade: \w+Er\w+|SystemExit: 3"):
        load_verifier(f"{tmp_path}/mine.py:grade")


def test_verifiers_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def long(problem, response): return len(response) > 3")
    mine = load_verifier(f"{tmp_path}/mine.py:long")
    assert (mine({}, "1234"), mine({}, "1")) == (True, False)
    assert load_verifier("exact_match") is exact_match
    assert load_verifier("dlogp_ray.decoding.grading:math_verify") is math_verify


def test_a_verifier_that_takes_something_else_is_refused_before_the_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def one(problem): return True\ndef many(*all): return True\n")
    with pytest.raises(ValueError, match=r"called with .*, takes \(problem\)"):
        load_verifier(f"{path}:one")
    assert load_verifier(f"{path}:many")({}, "")
