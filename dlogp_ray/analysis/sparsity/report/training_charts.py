"""The report's charts over training time, where a run has several checkpoints of one RL run."""

from typing import Any

from dlogp_ray.analysis.vega import (
    Chart,
    Rows,
    Spec,
    intervals,
    line,
    number,
    percent,
    series,
    spec,
    tooltip,
)

_STEP = number("step", "training step")
_SHOWN = (
    ("abs_delta_logp", "share_above", 0.5, "|Δlog p| > 0.5"),
    ("js", "share_above", 0.1, "JS > 0.1"),
)


def over_checkpoints(figures: Rows) -> list[Chart]:
    """How many tokens have moved at each checkpoint of one RL run.

    Args:
        figures: Rows of the table.
    """
    mine = [row for row in figures if row["step"] is not None and row["se"] is not None]
    if len({row["step"] for row in mine}) < 2:
        return []
    charts = []
    for statistic, figure, at, title in _SHOWN:
        key = (statistic, figure, at)
        values = [
            _of_step(row, row["step"])
            for row in mine
            if (row["statistic"], row["figure"], row["x"]) == key
        ]
        if values:
            caption = f"Share of tokens with {title} at each checkpoint, with 95 % intervals."
            charts.append(Chart(f"{title} over checkpoints", caption, _curve(values, title)))
    return charts


def linearity(rows: Rows) -> Chart:
    """How straight log p moves over steps (arXiv 2601.04537)."""
    totals: dict[str, int] = {}
    for row in rows:
        name = row["generator"] or "unnamed"
        totals[name] = totals.get(name, 0) + row["tokens"]
    values = [
        {
            "series": row["generator"] or "unnamed",
            "low": row["low"],
            "high": row["high"],
            "share": row["tokens"] / max(1, totals[row["generator"] or "unnamed"]),
        }
        for row in rows
    ]
    encoding = {
        "x": number("low", "R² over steps"),
        "y": number("share", "share of tokens in the bin", axis={"format": "~%"}),
        "color": series("text of"),
        "tooltip": tooltip(("series", None), ("low", ".2f"), ("high", ".2f"), ("share", ".2%")),
    }
    return Chart(
        "Linear in training",
        "Tokens that have moved by more than 0.5 nats, by how much of their movement a straight "
        "line over steps explains.",
        spec(values, [{"mark": {"type": "line", "interpolate": "step"}, "encoding": encoding}]),
    )


def half_ways(rows: Rows) -> Chart:
    """When tokens that moved had gone half of their way."""
    values = [
        _of_step(row, row["x"])
        for row in rows
        if row["figure"] == "share_of_moved_half_way_by_step" and row["value"] is not None
    ]
    return Chart(
        "When tokens moved",
        "Of the tokens that have moved by more than 0.5 nats: those that had gone half of their "
        "way by each checkpoint.",
        _curve(values, "half of the way gone"),
    )


def _of_step(row: Any, step: float) -> dict[str, Any]:
    kept = {name: row[name] for name in ("value", "ci_low", "ci_high")}
    return {"step": step, "series": row["generator"] or "unnamed", **kept}


def _curve(values: Rows, title: str) -> Spec:
    encoding = {
        "x": _STEP,
        "y": percent(title),
        "color": series("text of"),
        "tooltip": tooltip(("series", None), ("step", ","), ("value", ".2%")),
    }
    return spec(values, [{"mark": line(24), "encoding": encoding}, intervals(encoding)])
