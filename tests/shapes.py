"""Annotated shapes are checked as the tests run.

In each test, of each function, the first calls and then one in many: a check takes longer than what
it checks where that is a token of a tiny policy, and was half of all that such tests took.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any

import jaxtyping
import torch

ROOMS = ("policies", "scoring", "decoding", "weights")
FIRST, THEN = 50, 32
"""So many calls are checked, and of the others each that is a multiple."""
calls = Counter[str]()
"""Of a function, since its test began."""


def install() -> None:
    """Check the rooms' functions, whichever are imported from now on."""
    plain = jaxtyping.jaxtyped

    def sparing(fn: Any = None, *, typechecker: Any) -> Any:
        if fn is None:
            return partial(sparing, typechecker=typechecker)
        check = partial(plain, typechecker=typechecker)
        return check(fn) if isinstance(fn, type) else _sparingly(fn, check)

    jaxtyping.jaxtyped = sparing
    jaxtyping.install_import_hook(
        [f"dlogp_ray.{room}" for room in ROOMS], typechecker="beartype.beartype"
    )


def _sparingly(fn: Callable[..., Any], check: Callable[..., Any]) -> Callable[..., Any]:
    name = f"{fn.__module__}.{fn.__qualname__}"
    # Made when it is needed: that takes as long as many checks, and a function within another is
    # defined anew with each call of that.
    checked = cache(lambda: check(fn))

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # nothing is counted within what is compiled
            return fn(*args, **kwargs)
        calls[name] += 1
        due = calls[name] <= FIRST or calls[name] % THEN == 0
        return (checked() if due else fn)(*args, **kwargs)

    return call
