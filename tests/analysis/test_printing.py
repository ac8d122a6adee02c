"""Tables are printed whole, however narrow what they go to."""

import io

from rich.console import Console
from rich.table import Table

from dlogp_ray.analysis.printing import print_whole


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
