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
from beartype import BeartypeConf, beartype

ROOMS = ("policies", "scoring", "decoding", "weights", "analysis", "corpus")
FIRST, THEN = 50, 32
"""So many calls are checked, and of the others each that is a multiple."""
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int is a float, as for type checkers."""
calls = Counter[str]()
"""Of a function, since its test began."""


@cache
def install() -> None:
    """Check the rooms' functions, whichever are imported from now on; once, whoever asks."""
    plain = jaxtyping.jaxtyped

    def sparing(fn: Any = None, *, typechecker: Any) -> Any:
        if fn is None:
            return partial(sparing, typechecker=typechecker)
        if isinstance(fn, type):
            return plain(fn, typechecker=typechecker)
        if any("Self" in str(hint) for hint in fn.__annotations__.values()):
            return fn  # which beartype knows within a class that it decorates alone
        if "<locals>" in fn.__qualname__:
            # Defined anew with each call of the function around it, and to add a check takes as
            # long as many. What is defined is what pickles by value, too: no layer of ours.
            return plain(fn, typechecker=typechecker) if _due(fn) else fn
        return _sparingly(fn, plain(fn, typechecker=typechecker))

    jaxtyping.jaxtyped = sparing
    jaxtyping.install_import_hook(
        [f"dlogp_ray.{room}" for room in ROOMS], typechecker="shapes.checked"
    )


def _due(fn: Callable[..., Any]) -> bool:
    name = f"{fn.__module__}.{fn.__qualname__}"
    calls[name] += 1
    return calls[name] <= FIRST or calls[name] % THEN == 0


def _sparingly(fn: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Nothing is counted within what is compiled.
        due = not torch.compiler.is_compiling() and _due(fn)
        return (checked if due else fn)(*args, **kwargs)

    return call
