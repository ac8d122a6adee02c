"""Tables for people, whole: a name or a figure that is cut says nothing."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def print_whole(table: Table, console: Console) -> None:
    """Print a table as wide as it is; where the terminal is narrower, its lines wrap there.

    Where there is no terminal rich takes 80 columns for the width, and cuts.
    """
    unbounded = console.options.update(width=10_000)
    width = max(console.width, Measurement.get(console, unbounded, table).maximum)
    wide = Console(file=console.file, width=width, force_terminal=console.is_terminal)
    wide.print(table, highlight=False, crop=False)
