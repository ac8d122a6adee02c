"""Two sparsity analyses side by side: each figure of both, and the difference with its error.

Samples are dealt into folds by their ids, so that those which both runs scored lie in the same
fold of both. The error of a difference comes from what it is without each fold (the jackknife of
``folds``): what is alike in both runs cancels, and what is in one alone does not. Figures for
which that is not kept (quantiles, and analyses of before it was) count as independent:

    se(a − b)² = se(a)² + se(b)²

Raised and lowered are beyond a noise floor, and each run has its own: where these differ, both are
told beyond one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from dlogp_ray.analysis.estimates import Z95, t975
from dlogp_ray.analysis.sparsity.folds import jackknife_error
from dlogp_ray.analysis.sparsity.headlines import HEADLINES, cell
from dlogp_ray.errors import Refused
from dlogp_ray.status import Status
from dlogp_ray.tables.run import Run

_NUMBERS = ("value", "se", "n_tokens", "n_samples", "noise_floor")
_APART = (*_NUMBERS, "ci_low", "ci_high", "step", "without")
"""What is not part of a figure's name."""
_NAMED = 6
"""Groups, in an error."""
_OWN = ("policy", "generator", "statistic", "figure", "x")
"""What every figure's name has, beside the columns that an analysis is split by."""


def compared(a: pa.Table, b: pa.Table) -> pa.Table:
    """The figures that both have, in the order of the first.

    Args:
        a: ``figures`` of one analysis (``sparsity_tables``).
        b: Of the other, split by the same columns.

    Returns:
        ``value_a``, ``se_a``, … ``value_b``, … and ``difference`` (a − b) with ``difference_se``,
        ``difference_ci_low`` and ``difference_ci_high``; ``paired`` where its error is of what
        both runs have of each sample.

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
        rows.append(row | _difference(mine, other))
    if not rows:
        raise Refused(
            "the two analyses have no figure in common: expected the same names of policies and "
            f"generators (what their columns `policy` and `generator` say); the first has "
            f"{_groups(a)}, the second {_groups(b)}"
        )
    return pa.Table.from_pylist(rows)


def _groups(figures: pa.Table) -> str:
    """Whose figures there are; the first few."""
    pairs = dict.fromkeys((row["policy"], row["generator"]) for row in figures.to_pylist())
    named = [f"{policy} on text of {generator or 'unnamed'}" for policy, generator in pairs]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more


def shared_samples(a: Run, b: Run) -> tuple[int, int, int]:
    """Ids of samples with statistics: in one run, in the other, and in both."""
    ids_a, ids_b = _ids(a), _ids(b)
    both = pc.sum(pc.is_in(ids_a, value_set=ids_b), min_count=0).as_py()
    return len(ids_a), len(ids_b), both


def _ids(run: Run) -> pa.Array:
    ok = run.dataset().to_table(["sample_id"], filter=pc.field("status") == Status.OK)
    return pc.unique(ok["sample_id"])


def _difference(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    a, b = mine["value"], other["value"]
    value = None if a is None or b is None else a - b
    without = _without(mine, other) if value is not None else None
    if without is not None:
        se, t = jackknife_error(without), t975(len(without) - 1)
    else:
        alone = value is None or mine["se"] is None or other["se"] is None
        se, t = None if alone else math.hypot(mine["se"], other["se"]), Z95
    half = None if se is None else t * se
    return {
        "difference": value,
        "difference_se": se,
        "difference_ci_low": None if value is None or half is None else value - half,
        "difference_ci_high": None if value is None or half is None else value + half,
        "paired": without is not None,
    }


def _without(mine: Mapping[str, Any], other: Mapping[str, Any]) -> Sequence[float] | None:
    """The difference without each fold that has samples in either; None where that is not known."""
    a, b = mine.get("without"), other.get("without")
    if a is None or b is None:
        return None
    without = [
        (mine["value"] if x is None else x) - (other["value"] if y is None else y)
        for x, y in zip(a, b, strict=True)
        if x is not None or y is not None
    ]
    return without if len(without) > 1 else None  # one fold alone says nothing of an error


def common_floor(rows: pa.Table) -> float | None:
    """Where both runs' Δlog p is told from noise; None where their floors are the same.

    Returns:
        The lowest value that both analyses have shares beyond, from the larger floor on; infinite
        where there is none.
    """
    delta = [row for row in rows.to_pylist() if row["statistic"] == "delta_logp"]
    floors = {row[f"noise_floor_{side}"] or 0.0 for row in delta for side in "ab"}
    if len(floors) < 2:
        return None
    beyond = [row["x"] for row in delta if row["figure"] == _BEYOND["share_raised"]]
    return min((x for x in beyond if x >= max(floors)), default=math.inf)


_BEYOND = {"share_raised": "share_raised_above", "share_lowered": "share_lowered_above"}
"""Figure beyond a run's own floor -> the same beyond some value."""


def _headlines(floor: float | None) -> dict[tuple[str, str, float | None], str]:
    """(statistic, figure, at) -> heading."""
    names: dict[tuple[str, str, float | None], str] = {}
    for heading, statistic, figure, at in HEADLINES:
        if floor is not None and figure in _BEYOND:
            names[statistic, _BEYOND[figure], floor] = f"{heading} > {floor:g}"
        elif floor is None or figure != "share_unresolved":
            names[statistic, figure, at] = heading
    return names


def notes(rows: pa.Table, samples: tuple[int, int, int]) -> list[str]:
    """What one has to know of the table, for people.

    Args:
        rows: As ``compared`` gives them.
        samples: As ``shared_samples`` gives them.
    """
    of_a, of_b, both = samples
    floor, told = common_floor(rows), []
    if floor == math.inf:
        told.append(
            "the runs' noise floors differ, so that what is raised and lowered can't be compared; "
            "`dlogp sparsity` makes analyses that can"
        )
    elif floor is not None:
        told.append(
            f"raised and lowered: by more than {floor:g} nats in both, the larger of the runs' "
            "noise floors rounded up"
        )
    every = rows.to_pylist()
    shown = [row for row in every if _key(row) in _headlines(floor)] or every
    told.append(
        f"{both:,} sample ids are in both runs, of {of_a:,} in the first and {of_b:,} in the second"
    )
    if not both:
        told.append("differences: nothing in them is paired")
    elif all(row["paired"] for row in shown):
        told.append("differences: paired by sample id (without each of 16 folds of ids in turn)")
    elif not any(row["paired"] for row in shown):
        told.append(
            "differences: as if the runs had no samples in common; `dlogp sparsity` makes analyses "
            "in which they are paired"
        )
    return told


def _key(row: Mapping[str, Any]) -> tuple[str, str, float | None]:
    return row["statistic"], row["figure"], row["x"]


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
    names = _headlines(common_floor(rows))
    for row in rows.to_pylist():
        key = _key(row)
        if key in names:
            percent = row["figure"] != "mean"
            whose = [row["policy"], row["generator"] or "unnamed", *(row[n] or "" for n in by)]
            sides = [
                cell(row[f"value_{side}"], row[f"se_{side}"], percent=percent) for side in "ab"
            ]
            difference = cell(row["difference"], row["difference_se"], percent=percent)
            table.add_row(*whose, names[key], *sides, difference)
    return table
