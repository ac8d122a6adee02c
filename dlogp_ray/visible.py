r"""Text of others on a terminal: control characters are shown, never sent.

A corpus may hold anything: ``\x1b]0;…`` renames a window, and U+202E turns what follows around.
"""

import re

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""All but tabs and line feeds; what sets the direction of text; what no encoding writes."""


def visible(text: str) -> str:
    """The text with each control character as Python spells it."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)
