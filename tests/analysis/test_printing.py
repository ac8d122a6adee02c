"""Tables are printed whole, however narrow what they go to."""

import io

from rich.console import Console
from rich.table import Table

from dlogp_ray.analysis.printing import print_rows, print_whole


def test_nothing_is_cut_at_40_columns() -> None:
    table = Table(box=None)
    table.add_column("intervention")
    table.add_column("right", justify="right", no_wrap=True)
    names = ["delta_logp tau=-0.7 gamma=0.1", "a name that goes beyond " + "x" * 60]
    for name in names:
        table.add_row(name, "30.00% ± 2.00%")
    sink = io.StringIO()
    print_whole(table, Console(file=sink, width=40))
    _heading, *lines = sink.getvalue().splitlines()
    assert [line.split("  30.00")[0].strip() for line in lines] == names
    assert all(line.rstrip().endswith("30.00% ± 2.00%") for line in lines)


ROWS = [
    ["policy", "text of", "tokens", "mean Δ", "raised"],
    ["rl", "base", "1,000", "+0.0100 ± 0.0010", "10.00% ± 1.00%"],
    ["rl", "rl", "2,000", "+0.0200 ± 0.0020", "20.00% ± 2.00%"],
    ["late", "rl", "3,000", "+0.0300 ± 0.0030", "30.00% ± 3.00%"],
]


def printed(width: int) -> list[str]:
    sink = io.StringIO()
    print_rows(ROWS, Console(file=sink, width=width), names=2)
    return [line.rstrip() for line in sink.getvalue().splitlines()]


def test_a_row_is_a_line_where_there_is_room() -> None:
    assert [line.split() for line in printed(80)] == [" ".join(row).split() for row in ROWS]


def test_rows_stand_on_end_where_a_terminal_is_narrow() -> None:
    """Headings take 7 columns and a row 16, and 2 stand behind each: 45 columns hold two rows."""
    lines = printed(45)
    assert max(map(len, lines)) <= 45
    first, second = lines[: len(ROWS[0])], lines[len(ROWS[0]) + 1 :]
    assert [line.split("  ")[0] for line in first] == ROWS[0]
    assert first[3].split()[2:] == "+0.0100 ± 0.0010 +0.0200 ± 0.0020".split()
    assert second[0].split() == ["policy", "late"]
    assert second[3].endswith("+0.0300 ± 0.0030")


def test_nothing_is_cut_where_not_even_one_fits() -> None:
    assert "+0.0300 ± 0.0030" in "\n".join(printed(10))
