"""Parts of Vega-Lite 6 specifications that charts share, plain dicts; charts as pictures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

HEIGHT = 220
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of pictures: Okabe and Ito's, which the colour-blind tell apart."""


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


def coloured_intervals(encoding: Spec) -> Spec:
    """``intervals`` in the colours of what is drawn, on the y axis that it has."""
    layer = intervals(encoding)
    lower = encoding["y"] | {"field": "ci_low"}
    layer["encoding"] |= {"y": lower, "color": encoding["color"]}
    return layer


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


def drawn(chart: Spec) -> dict[str, bytes]:
    """A chart as a picture: ``svg`` and ``png``, the same bytes each time."""
    import vl_convert

    config = {"background": "white", "range": {"category": list(_COLOURS)}}
    whole = chart | {"config": config}
    svg = vl_convert.vegalite_to_svg(whole).encode()
    return {"svg": svg, "png": vl_convert.vegalite_to_png(whole, ppi=150)}
