"""Pictures of an intervene run: accuracy against the trigger rate, and what extrapolation adds."""

from collections.abc import Iterable, Sequence
from typing import Any

from dlogp_ray.analysis.curve import Point
from dlogp_ray.analysis.estimates import Z95
from dlogp_ray.analysis.vega import (
    Spec,
    coloured_intervals,
    drawn,
    line,
    number,
    ordinal,
    percent,
    spec,
)

_SIZE = {"width": 460, "height": 300}
_BAR = 48
"""Pixels of a bar, with what is around it."""
_RIGHT = "right answers (95 % intervals)"


def curve_picture(points: Iterable[Point]) -> dict[str, bytes] | None:
    """Accuracy of each replacement rule against its trigger rate (arXiv 2603.22117, Fig. 1c).

    Returns:
        ``svg`` and ``png``; None where no rule has a rate.
    """
    points = [point for point in points if point.accuracy is not None]
    rows = [
        _row(point, series=point.rule if point.primary == "base" else f"{point.rule}, backward")
        for point in sorted(points, key=lambda point: point.trigger_rate)
        if point.gamma is None and point.rule not in ("always", "never") and point.trigger_rate > 0
    ]
    if not rows:
        return None
    colour: Spec = {"field": "series", "type": "nominal", "title": None}
    colour |= {"sort": list(dict.fromkeys(_series(points)))}
    encoding = {
        "x": number(
            "x",
            "tokens at which the rule fired",
            scale={"type": "log"},
            axis={"format": "~%", "tickCount": 5},
        ),
        "y": percent(_RIGHT) | {"scale": {"zero": False}},
        "color": colour,
        "shape": colour | {"legend": None},
    }
    policies = [_row(point) for point in _alone(points)]
    layers = [
        {"mark": line(40), "encoding": encoding},
        coloured_intervals(encoding),
        {
            "data": {"values": policies},
            "mark": {"type": "rule", "color": "gray", "strokeDash": [4, 3]},
            "encoding": {"y": percent(_RIGHT)},
        },
        {
            "data": {"values": policies},
            "mark": {"type": "text", "align": "left", "dx": 4, "color": "gray"},
            "encoding": {
                "x": {"value": "width"},
                "y": percent(_RIGHT),
                "text": {"field": "label", "type": "nominal"},
            },
        },
    ]
    return drawn(spec(rows, layers) | _SIZE)


def _series(points: Sequence[Point]) -> list[str]:
    """Rules in the order in which they were asked for."""
    return [p.rule if p.primary == "base" else f"{p.rule}, backward" for p in points]


def extrapolation_picture(points: Iterable[Point]) -> dict[str, bytes] | None:
    """Bars: replacement, the RL policy, and each γ of the same rule and threshold.

    Returns:
        ``svg`` and ``png``; None where nothing was extrapolated.
    """
    points = [point for point in points if point.accuracy is not None]
    shown = extrapolation_rows(points)
    if not shown:
        return None
    rows = [_row(point, kind="alone" if point.rule == "never" else _kind(point)) for point in shown]
    low, high = min(row["ci_low"] for row in rows), max(row["ci_high"] for row in rows)
    margin = 0.25 * max(high - low, 0.01)
    limits = [max(0.0, low - margin), min(1.0, high + margin)]
    encoding = {
        "x": ordinal("label", "", labelAngle=-40) | {"sort": None},
        "y": percent(_RIGHT) | {"scale": {"domain": limits}},
        "color": {
            "field": "kind",
            "type": "nominal",
            "title": None,
            "sort": ["replaced", "alone", "extrapolated"],
        },
    }
    layers = [
        {
            "mark": {"type": "bar", "clip": True},
            "encoding": encoding | {"y2": {"datum": limits[0]}},
        },
        coloured_intervals(encoding) | {"mark": {"type": "rule", "color": "black"}},
    ]
    return drawn(spec(rows, layers) | _SIZE | {"width": max(160, _BAR * len(rows))})


def _kind(point: Point) -> str:
    return "replaced" if point.gamma is None else "extrapolated"


def _row(point: Point, **more: str) -> dict[str, Any]:
    value, error = float(point.accuracy or 0.0), Z95 * (point.se or 0.0)
    interval = {"ci_low": value - error, "ci_high": value + error}
    return {"x": point.trigger_rate, "value": value, "label": point.label, **interval, **more}


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
