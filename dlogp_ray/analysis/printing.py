"""What commands print: tables for people, whole, and a line of JSON for programs."""

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
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


def print_rows(rows: Sequence[Sequence[str]], console: Console, *, names: int) -> None:
    """Print rows below their headings; where a terminal is too narrow, a row stands on end.

    Args:
        rows: The headings, and the cells of each row.
        console: Where to.
        names: Columns from the left that are names, not figures.
    """
    flat = _table(rows, lambda column: column < names)
    if _width(flat, console) <= console.width:
        print_whole(flat, console)
        return
    # As many on end beside each other as there is room for.
    headings, *left = rows
    while left:
        for count in range(len(left), 0, -1):
            on_end = _table(list(zip(headings, *left[:count], strict=True)), lambda c: c == 0)
            if _width(on_end, console) <= console.width or count == 1:
                break
        print_whole(on_end, console)
        left = left[count:]
        if left:
            console.print()


def _table(rows: Sequence[Sequence[str]], is_left: Callable[[int], bool]) -> Table:
    headings, *cells = rows
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="left" if is_left(column) else "right")
    for row in cells:
        table.add_row(*row)
    return table


def _width(table: Table, console: Console) -> int:
    unbounded = console.options.update(width=_UNBOUNDED)
    return Measurement.get(console, unbounded, table).maximum


def print_whole(table: Table, console: Console) -> None:
    """Print a table as wide as it is; where the terminal is narrower, its lines wrap there.

    Where there is no terminal rich takes 80 columns for the width, and cuts: a name or a figure
    that is cut says nothing.
    """
    width = max(console.width, _width(table, console))
    terminal = console.is_terminal
    text = io.StringIO()
    file = console.file if terminal else text
    wide = _Visible(file=file, width=width, force_terminal=terminal, quiet=console.quiet)
    wide.print(table, highlight=False, crop=False)
    # rich fills lines up to the table's width, with nothing that a pipe wants.
    console.file.write("".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))
