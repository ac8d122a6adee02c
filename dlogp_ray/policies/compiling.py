"""``torch.compile`` for all policies of a process: how much it may compile, and where it gave up.

Of each function torch keeps so many compiled forms (``recompile_limit``, 8) and runs what needs
another one as it is, with a warning in its own log alone. The decoder layers of all policies are
one function to it, whatever their architecture. One form serves any number of texts and tokens (one
token, or one text of a padded batch, has a form of its own), and all policies whose layers are
built alike; an adapter of another rank needs another. So the limit grows with the policies.
"""

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Module

FORMS = 16
"""Of a function, what one policy may need. Pairs of tiny models had 2 (Llama) to 12 (Zamba 2,
RecurrentGemma: layers of several kinds, in padded batches), however many layers they had."""
_HIT = "torch._dynamo hit config."
"""How torch's warning begins."""

_policies = 0
"""Whose layers were compiled in this process."""


class _Watch(logging.Handler):
    """Remembers what torch's log says that it no longer compiles."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.functions: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()).startswith(_HIT):
            name = re.search(r"function: '(.*?)'", text)
            self.functions.add(name[1] if name else text.splitlines()[0])


_watch = _Watch()
logging.getLogger("torch._dynamo.convert_frame").addHandler(_watch)


def given_up() -> list[str]:
    """Functions of which what came last, in this process, ran uncompiled."""
    return sorted(_watch.functions)


def compile_layers(layers: Iterable[Module]) -> None:
    """Compile the decoder layers of one policy, which are alike: one compilation for all."""
    global _policies
    _policies += 1
    for layer in layers:
        layer.compile(dynamic=True)
        layer._compiled_call_impl = with_room(layer._compiled_call_impl)


def with_room(function: Any) -> Callable[..., Any]:
    """What ``torch.compile`` made, with room for the forms that all policies need."""

    def call(*args: Any, **kwargs: Any) -> Any:
        # At each call (14 us), for torch's settings are those of a thread.
        config: Any = torch._dynamo.config
        forms = FORMS * max(1, _policies)
        most = max(forms, config.accumulated_recompile_limit)
        with config.patch(recompile_limit=forms, accumulated_recompile_limit=most):
            return function(*args, **kwargs)

    return call
