"""Parts of Vega-Lite 6 specifications that the report's charts share; plain dicts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

HEIGHT = 220


@dataclass(frozen=True)
class Chart:
    """A chart with its words.

    Attributes:
        title: What it shows.
        caption: How to read it, and where it comes from.
        spec: Vega-Lite.
    """

    title: str
    caption: str
    spec: Spec


def spec(values: Iterable[Mapping[str, Any]], layers: list[Spec]) -> Spec:
    """A chart of some values, as wide as there is room."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": HEIGHT,
        "data": {"values": list(values)},
        "layer": layers,
    }


def series(title: str | None = None) -> Spec:
    """The colour of whose text it is."""
    return {
        "field": "series",
        "type": "nominal",
        "title": title,
        "legend": {"orient": "top", "columns": 1, "labelLimit": 300, "symbolOpacity": 1},
    }


def percent(title: str) -> Spec:
    """A share, upwards."""
    return {"field": "value", "type": "quantitative", "title": title, "axis": {"format": "~%"}}


def number(field: str, title: str | None = None, **more: Any) -> Spec:
    """A number, on either axis."""
    return {"field": field, "type": "quantitative", "title": title, **more}


def logarithmic(form: str) -> Spec:
    """Of an axis: its scale, with few enough labels that they don't touch."""
    return {"scale": {"type": "log"}, "axis": {"format": form, "tickCount": 5}}


def ordinal(field: str, title: str, **axis: Any) -> Spec:
    """Places on the x axis, labelled upright."""
    return {"field": field, "type": "ordinal", "title": title, "axis": {"labelAngle": 0, **axis}}


def tooltip(*fields: tuple[str, str | None]) -> list[Spec]:
    """Fields with how their numbers are written; None for text."""
    return [
        {"field": name, "title": name.replace("_", " ")}
        | ({"format": form, "type": "quantitative"} if form else {"type": "nominal"})
        for name, form in fields
    ]


def figure_tooltip(form: str) -> list[Spec]:
    """What there is to a figure, its value written so."""
    return tooltip(
        ("series", None),
        ("x", "~g"),
        ("value", form),
        ("ci_low", form),
        ("ci_high", form),
        ("n_tokens", ","),
    )


def intervals(encoding: Spec) -> Spec:
    """The 95 % intervals of what is drawn so."""
    kept = {key: encoding[key] for key in ("x", "xOffset") if key in encoding}
    limits = {"y": number("ci_low"), "y2": {"field": "ci_high"}}
    return {"mark": {"type": "rule"}, "encoding": {**kept, **limits}}


def below_noise(low: float, high: float) -> Spec:
    """A grey band over the x axis."""
    return {
        "data": {"values": [{"low": low, "high": high}]},
        "mark": {"type": "rect", "opacity": 0.18, "color": "gray"},
        "encoding": {"x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}},
    }


def line(size: int = 20, **more: Any) -> Spec:
    """A line through points."""
    return {"type": "line", "point": {"size": size}, **more}
