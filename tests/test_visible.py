"""Control characters of a corpus are shown, and never sent to a terminal."""

import pytest

from dlogp_ray.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Δlog p, 日本語 🙂", "plain, Δlog p, 日本語 🙂"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b31m", r"\x9b31m"),
        ("safe\rforged", r"safe\rforged"),
        ("a\x08b\x00c\x7f", r"a\x08b\x00c\x7f"),
        ("left\u202eright", r"left\u202eright"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_control_characters_are_spelled(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_no_character_that_terminals_obey_is_left() -> None:
    everything = "".join(map(chr, range(0xA0)))
    left = {ord(char) for char in visible(everything)}
    # Printable ASCII, with tab and line feed.
    assert left == {9, 10, *range(0x20, 0x7F)}
