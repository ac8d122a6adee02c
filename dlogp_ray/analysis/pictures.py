"""Pictures of an intervene run: accuracy against the trigger rate, and what extrapolation adds."""

import io
from collections.abc import Iterable
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dlogp_ray.analysis.curve import Point
from dlogp_ray.analysis.estimates import Z95

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which the colour-blind tell apart."""
_MARKERS = "osD^vPX"


def curve_picture(points: Iterable[Point]) -> dict[str, bytes] | None:
    """Accuracy of each replacement rule against its trigger rate (arXiv 2603.22117, Fig. 1c).

    Returns:
        ``svg`` and ``png``; None where no rule has a rate.
    """
    points = [point for point in points if point.accuracy is not None]
    lines: dict[str, list[Point]] = {}
    for point in points:
        if point.gamma is None and point.rule not in ("always", "never"):
            name = point.rule if point.primary == "base" else f"{point.rule}, backward"
            lines.setdefault(name, []).append(point)
    if not any(point.trigger_rate > 0 for line in lines.values() for point in line):
        return None
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, line) in enumerate(lines.items()):
        line = sorted((p for p in line if p.trigger_rate > 0), key=lambda p: p.trigger_rate)
        axes.errorbar(
            [point.trigger_rate for point in line],
            [float(point.accuracy or 0.0) for point in line],
            [Z95 * (point.se or 0.0) for point in line],
            label=name,
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            linewidth=1.5,
            capsize=2,
        )
    for point, style in zip(_alone(points), ("--", ":"), strict=False):
        axes.axhline(float(point.accuracy or 0.0), color="0.4", linestyle=style, linewidth=1)
        axes.annotate(
            point.label,
            (1.0, float(point.accuracy or 0.0)),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color="0.4",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("tokens at which the rule fired")
    axes.set_ylabel("right answers (95 % intervals)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _encoded(figure)


def extrapolation_picture(points: Iterable[Point]) -> dict[str, bytes] | None:
    """Bars: replacement, the RL policy, and each γ of the same rule and threshold.

    Returns:
        ``svg`` and ``png``; None where nothing was extrapolated.
    """
    points = [point for point in points if point.accuracy is not None]
    shown = extrapolation_rows(points)
    if not shown:
        return None
    figure = Figure(figsize=(max(4.0, 0.9 * len(shown) + 1.5), 4.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    accuracies = [float(point.accuracy or 0.0) for point in shown]
    errors = [Z95 * (point.se or 0.0) for point in shown]
    colours = [
        _COLOURS[1] if p.gamma is not None else "0.6" if p.rule == "never" else _COLOURS[0]
        for p in shown
    ]
    places = range(len(shown))
    axes.bar(places, accuracies, yerr=errors, color=colours, capsize=3)
    axes.set_xticks(places, [point.label for point in shown], rotation=40, ha="right")
    low = min(a - e for a, e in zip(accuracies, errors, strict=True))
    high = max(a + e for a, e in zip(accuracies, errors, strict=True))
    margin = 0.25 * max(high - low, 0.01)
    axes.set_ylim(max(0.0, low - margin), min(1.0, high + margin))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("right answers (95 % intervals)")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return _encoded(figure)


def extrapolation_rows(points: Iterable[Point]) -> list[Point]:
    """Replace → RL → extrapolate: the rows of that table; none where nothing was extrapolated."""
    points = list(points)
    beyond = [point for point in points if point.gamma is not None]
    same = {(p.rule, p.threshold, p.primary) for p in beyond}
    replaced = [p for p in points if p.gamma is None and (p.rule, p.threshold, p.primary) in same]
    return [*replaced, *_alone(points)[1:], *beyond] if beyond else []


def _alone(points: Iterable[Point]) -> list[Point]:
    """The base by itself, and the RL policy."""
    return [point for point in points if point.rule == "never"][:2]


def _encoded(figure: Figure) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    # Text as text, and the same bytes each time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "dlogp_ray"}):
        for kind in ("svg", "png"):
            sink = io.BytesIO()
            metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
            figure.savefig(sink, format=kind, dpi=150, metadata=metadata)
            found[kind] = sink.getvalue()
    return found
