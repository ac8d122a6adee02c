"""Two sparsity analyses side by side: each figure of both, and the difference with its error.

    se(a − b)² = se(a)² + se(b)²

The samples of the two runs count as independent.
"""

import math

import pyarrow as pa
from rich.table import Table

from dlogp_ray.analysis.estimates import Z95
from dlogp_ray.analysis.sparsity.headlines import HEADLINES, cell
from dlogp_ray.errors import Refused

_NUMBERS = ("value", "se", "n_tokens", "n_samples", "noise_floor")
_APART = (*_NUMBERS, "ci_low", "ci_high", "step")
"""What is not part of a figure's name."""
_OWN = ("policy", "generator", "statistic", "figure", "x")
"""What every figure's name has, beside the columns that an analysis is split by."""


def compared(a: pa.Table, b: pa.Table) -> pa.Table:
    """The figures that both have, in the order of the first.

    Args:
        a: ``figures`` of one analysis (``sparsity_tables``).
        b: Of the other, split by the same columns.

    Returns:
        ``value_a``, ``se_a``, … ``value_b``, … and ``difference`` (a − b) with ``difference_se``,
        ``difference_ci_low`` and ``difference_ci_high``.

    Raises:
        Refused: They have nothing in common.
    """
    key, other_key = ([n for n in table.column_names if n not in _APART] for table in (a, b))
    if set(key) != set(other_key):
        raise Refused(
            f"expected two analyses that are split by the same columns, got {', '.join(key)} and "
            f"{', '.join(other_key)}"
        )
    theirs = {tuple(row[name] for name in key): row for row in b.to_pylist()}
    rows = []
    for mine in a.to_pylist():
        other = theirs.get(tuple(mine[name] for name in key))
        if other is None:
            continue
        row = {name: mine[name] for name in key}
        for name in _NUMBERS:
            row |= {f"{name}_a": mine[name], f"{name}_b": other[name]}
        rows.append(row | _difference(mine["value"], other["value"], mine["se"], other["se"]))
    if not rows:
        raise Refused(
            "the two analyses have no figure in common: expected the same names of policies and "
            "generators"
        )
    return pa.Table.from_pylist(rows)


def _difference(
    a: float | None, b: float | None, se_a: float | None, se_b: float | None
) -> dict[str, float | None]:
    value = None if a is None or b is None else a - b
    se = None if value is None or se_a is None or se_b is None else math.hypot(se_a, se_b)
    half = None if se is None else Z95 * se
    return {
        "difference": value,
        "difference_se": se,
        "difference_ci_low": None if value is None or half is None else value - half,
        "difference_ci_high": None if value is None or half is None else value + half,
    }


def headline_differences(rows: pa.Table) -> Table:
    """The figures that one asks for first, a line each."""
    by = [
        name for name in rows.column_names[: rows.column_names.index("value_a")] if name not in _OWN
    ]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("policy", "text of", *by, "figure"):
        table.add_column(heading)
    for heading in ("a", "b", "a - b"):
        table.add_column(heading, justify="right")
    names = {(statistic, figure, at): heading for heading, statistic, figure, at in HEADLINES}
    for row in rows.to_pylist():
        key = (row["statistic"], row["figure"], row["x"])
        if key in names:
            percent = row["figure"] != "mean"
            whose = [row["policy"], row["generator"] or "unnamed", *(row[n] or "" for n in by)]
            sides = [
                cell(row[f"value_{side}"], row[f"se_{side}"], percent=percent) for side in "ab"
            ]
            difference = cell(row["difference"], row["difference_se"], percent=percent)
            table.add_row(*whose, names[key], *sides, difference)
    return table
