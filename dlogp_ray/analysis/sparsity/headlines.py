"""The figures of a sparsity analysis that one asks for first, one line a group, for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

HEADLINES: tuple[tuple[str, str, str, float | None], ...] = (
    ("mean Δ", "delta_logp", "mean", None),
    ("|Δ| > 0.1", "abs_delta_logp", "share_above", 0.1),
    ("|Δ| > 0.5", "abs_delta_logp", "share_above", 0.5),
    ("JS > 0.1", "js", "share_above", 0.1),
    ("Σ|Δ| in top 10 %", "abs_delta_logp", "share_of_sum_in_top", 0.1),
    ("raised", "delta_logp", "share_raised", None),
    ("lowered", "delta_logp", "share_lowered", None),
    ("unresolved", "delta_logp", "share_unresolved", None),
)
"""Raised and lowered are beyond the run's noise floor."""
_LETTERS = 40
_NOTHING = {"value": None, "se": None}
"""Of a statistic that the run does not have."""


def headline_rows(figures: pa.Table, by: Sequence[str]) -> list[list[str]]:
    """A group a line, below their headings.

    Args:
        figures: As ``sparsity_tables`` gives them.
        by: Columns that they are split by.
    """
    headings = [heading for heading, *_ in HEADLINES]
    rows = [["policy", "text of", *by, "samples", "tokens", *headings]]
    for whose, of_group in _groups(figures, by):
        mean = of_group["delta_logp", "mean", None]
        cells = [f"{mean['n_samples']:,}", f"{mean['n_tokens']:,}"]
        for _, statistic, figure, at in HEADLINES:
            row = of_group.get((statistic, figure, at), _NOTHING)
            cells.append(cell(row["value"], row["se"], percent=figure != "mean"))
        rows.append([*whose, *cells])
    return rows


def _groups(
    figures: pa.Table, by: Sequence[str]
) -> Iterator[tuple[list[str], dict[tuple[str, str, float | None], Mapping[str, Any]]]]:
    groups: dict[tuple[Any, ...], dict[tuple[str, str, float | None], Mapping[str, Any]]] = {}
    for row in figures.to_pylist():
        whose = (row["policy"], row["generator"] or "unnamed", *(_short(row[name]) for name in by))
        key = (row["statistic"], row["figure"], row["x"])
        groups.setdefault((row["step"], *whose), {})[key] = row
    for (_, *names), of_group in groups.items():
        yield names, of_group


def _short(value: str | None) -> str:
    """On one line; a value that is missing is not an empty one."""
    if value is None:
        return "(none)"
    text = " ".join(value.split("\n"))
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


def cell(value: float | None, se: float | None, *, percent: bool) -> str:
    """A figure with its standard error."""
    if value is None:
        return ""
    if percent:
        return f"{value:.2%}" + ("" if se is None else f" ± {se:.2%}")
    return f"{value:+.4f}" + ("" if se is None else f" ± {se:.4f}")
