"""What commands print: tables for people, whole, and a line of JSON for programs."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dlogp_ray.visible import visible

_UNBOUNDED = 10_000
"""Columns."""


class _Visible(Console):
    """A console that sends no control character of what it is given."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Text, and each cell of a table."""
        return super().render_str(visible(text), **options)


def for_people(*, as_json: bool) -> Console:
    """Standard output; silent where JSON alone was asked for.

    Lines wrap where a terminal ends, and nowhere else: without one rich takes 80 columns.
    """
    return _Visible(quiet=as_json, width=None if sys.stdout.isatty() else _UNBOUNDED)


def for_programs(document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a line of JSON where it was asked for, or where no terminal shows it to a person."""
    if as_json or not sys.stdout.isatty():
        print(json.dumps(document), flush=True)  # noqa: T201


def print_whole(table: Table, console: Console) -> None:
    """Print a table as wide as it is; where the terminal is narrower, its lines wrap there.

    Where there is no terminal rich takes 80 columns for the width, and cuts: a name or a figure
    that is cut says nothing.
    """
    unbounded = console.options.update(width=_UNBOUNDED)
    width = max(console.width, Measurement.get(console, unbounded, table).maximum)
    wide = _Visible(
        file=console.file, width=width, force_terminal=console.is_terminal, quiet=console.quiet
    )
    wide.print(table, highlight=False, crop=False)
