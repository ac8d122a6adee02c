"""Whether answers are right: a verifier takes the problem's row and the answer's text."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

Verifier = Callable[[Mapping[str, Any], str], bool]

ANSWER = "answer"
"""The column of a problem's row that holds the right answer."""


def exact_match(problem: Mapping[str, Any], response: str) -> bool:
    """Whether the response is the answer, but for white space around it."""
    return response.strip() == str(problem[ANSWER]).strip()


def math_verify(problem: Mapping[str, Any], response: str) -> bool:
    r"""Whether the last \boxed{…} or plain answer equals the right one as mathematics.

    Raises:
        ImportError: The package math-verify is not installed (``pip install math-verify``).
    """
    from math_verify import parse, verify

    # Without its own time limits, which need the process's main thread.
    right = parse(f"\\boxed{{{problem[ANSWER]}}}", parsing_timeout=None)
    return bool(verify(right, parse(response, parsing_timeout=None), timeout_seconds=None))


_NAMED = 8
"""Functions, in an error."""
_OWN_FAILURES = (Exception, SystemExit)
"""What code of the user's own may end with; a grader that calls ``exit`` ends no actor."""

VERIFIERS: dict[str, Verifier] = {"exact_match": exact_match, "math_verify": math_verify}


def load_verifier(name: str) -> Verifier:
    """A verifier by its name, or by ``package.module:function`` or ``path/file.py:function``.

    Raises:
        ValueError: There is none.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    module, colon, function = name.rpartition(":")
    if not colon:
        raise ValueError(
            f"no verifier is called {name!r}; there are {', '.join(VERIFIERS)}, and functions of "
            "your own as package.module:function or path/file.py:function"
        )
    try:
        home = _module_of_file(module) if module.endswith(".py") else import_module(module)
    except FileNotFoundError:
        raise ValueError(f"verifier {name}: there is no file {module}") from None
    except _OWN_FAILURES as error:
        raise ValueError(f"verifier {name}: {type(error).__name__}: {error}") from None
    if (found := getattr(home, function, None)) is None:
        there = [n for n, value in vars(home).items() if callable(value) and n[0] != "_"]
        near = get_close_matches(function, there, n=1) or there[:_NAMED]
        raise ValueError(
            f"verifier {name}: {module} has no function {function!r}; it has "
            f"{', '.join(near) or 'none'}"
        )
    if not callable(found):
        raise ValueError(f"verifier {name}: expected a function, got {type(found).__name__}")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # of what has none, as some functions of C
        signature = inspect.signature(exact_match)
    try:
        signature.bind({}, "")
    except TypeError as error:
        raise ValueError(
            f"verifier {name}: it is called with (problem, response), takes {signature}: {error}"
        ) from None
    verifier: Verifier = found
    return verifier


def verifier_hash(name: str) -> str | None:
    """SHA-256 of the file that a verifier of the user's own is named in; None for others.

    Files that it imports in turn are not looked at.
    """
    if name in VERIFIERS:
        return None
    module = name.rpartition(":")[0]
    # What is built into Python has no file.
    path = module if module.endswith(".py") else getattr(import_module(module), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


def _module_of_file(path: str) -> ModuleType:
    spec = spec_from_file_location(f"verifier_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Grade:
    """What a verifier said.

    Attributes:
        correct: None where it failed.
        error: Why it failed.
    """

    correct: bool | None
    error: str | None = None


def grade(verifier: Verifier, problem: Mapping[str, Any], response: str) -> Grade:
    """Ask a verifier; one that raises, or says neither yes nor no, leaves the answer ungraded.

    Yes and no are True and False, or 1 and 0 of any numeric type: a text is always true.
    """
    try:
        said: object = verifier(problem, response)
        # NumPy's and torch's numbers and truth values among them.
        value = said.item() if hasattr(said, "item") else said
        if isinstance(value, int | float) and value in (0, 1):
            return Grade(bool(value))
    except _OWN_FAILURES as error:
        return Grade(None, f"{type(error).__name__}: {error}")
    return Grade(None, f"the verifier returned {said!r}; expected True or False")
