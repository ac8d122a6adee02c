"""The report's charts, as Vega-Lite specifications of the sparsity tables.

Colours and type come from the page's theme. What lies below the run's noise floor is grey, or its
size stands in the caption. Values have their ``policy``, of which the page shows one at a time.
Figures of one sample, which have no error, are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dlogp_ray.analysis.sparsity.report.training_charts import (
    half_ways,
    linearity,
    over_checkpoints,
)
from dlogp_ray.analysis.vega import (
    Chart,
    Rows,
    Spec,
    below_noise,
    figure_tooltip,
    intervals,
    line,
    logarithmic,
    number,
    ordinal,
    percent,
    series,
    spec,
    tooltip,
)
from dlogp_ray.tables.scores import OF

_SHOWN = ("delta_logp", "kl_rl_base", "js", "entropy_base")
"""Statistics that have a histogram of their own."""
_MAGNITUDES = {"abs_delta_logp": f"|{OF['delta_logp'].label}|"} | {
    name: OF[name].label for name in ("kl_rl_base", "js")
}
_DIRECTIONS = {"lowered": "#d08030", "unresolved": "#98a1ab", "raised": "#3f8fd6"}
"""Of colours that the colour-blind can tell apart, on white and on black."""


def charts(tables: Mapping[str, pa.Table]) -> dict[str, list[Chart]]:
    """All charts that the tables have something for, under their headings.

    Args:
        tables: As ``sparsity_tables`` gives them, with those against training time.
    """
    figures = [_labelled(row) for row in tables["figures"].to_pylist()]
    histograms = [_labelled(row) for row in tables["histograms"].to_pylist()]
    joint = [_labelled(row) for row in tables["joint"].to_pylist()]
    training = over_checkpoints(figures)
    if "training" in tables:
        training += [linearity(tables["training_r2"].to_pylist())]
        training += [half_ways(tables["training"].to_pylist())]
    sections: dict[str, Sequence[Chart | None]] = {
        "How far, and in which direction": [
            direction(figures),
            *(histogram(histograms, name) for name in _SHOWN),
        ],
        "How sparsely": [
            *(above(figures, name) for name in _MAGNITUDES),
            concentration(figures),
        ],
        "Where in the response": [
            over_places(figures, "abs_delta_logp"),
            quantiles_over_places(figures, "abs_delta_logp"),
            over_positions(figures, "abs_delta_logp"),
            over_places(figures, "js"),
            quantiles_over_places(figures, "js"),
            over_positions(figures, "js"),
        ],
        "At which tokens": [
            first_choices(figures),
            entropy_by_divergence(joint),
            deciles(figures),
            gradient(figures),
        ],
        "Over training": training,
    }
    there = {title: [chart for chart in some if chart] for title, some in sections.items()}
    return {title: some for title, some in there.items() if some}


def _labelled(row: Mapping[str, Any]) -> dict[str, Any]:
    """With ``series``: whose text it is. The page shows one policy at a time."""
    return {**row, "series": f"{row['generator'] or 'unnamed'}'s text"}


def _noise(rows: Rows) -> tuple[float, str]:
    """The noise floor of some rows' statistic, and how it is said."""
    floor = next((row["noise_floor"] for row in rows if row["noise_floor"] is not None), None)
    if floor is None:
        return 0.0, "No noise floor was measured."
    return floor, f"Noise floor: {floor:.2g} nats."


def direction(figures: Rows) -> Chart | None:
    """Tokens that RL raised and lowered beyond the noise, and the others."""
    values = [
        {
            "policy": row["policy"],
            "series": row["series"],
            "tokens": name,
            "value": row["value"],
            "ci_low": row["ci_low"],
            "ci_high": row["ci_high"],
        }
        for name in _DIRECTIONS
        for row in figures
        if row["figure"] == f"share_{name}" and row["statistic"] == "delta_logp"
        if row["n_samples"] > 1
    ]
    if not values:
        return None
    encoding = {
        "x": number("value", "share of tokens", stack="normalize", axis={"format": "~%"}),
        "y": {
            "field": "series",
            "type": "nominal",
            "title": None,
            "axis": {"labelLimit": 160},
        },
        "color": {
            "field": "tokens",
            "type": "nominal",
            "title": None,
            "scale": {"domain": list(_DIRECTIONS), "range": list(_DIRECTIONS.values())},
            "legend": {"orient": "top"},
        },
        "order": {"field": "tokens", "sort": "ascending"},
        "tooltip": tooltip(("series", None), ("tokens", None), ("value", ".2%"))
        + tooltip(("ci_low", ".2%"), ("ci_high", ".2%")),
    }
    _, noise = _noise([row for row in figures if row["statistic"] == "delta_logp"])
    return Chart(
        "Raised, lowered, unresolved",
        f"Tokens by the sign of Δlog p; unresolved where |Δlog p| is within the noise. {noise}",
        spec(values, [{"mark": "bar", "encoding": encoding}]),
    )


def histogram(rows: Rows, statistic: str) -> Chart | None:
    """Densities of a statistic by whose text it is, on a log scale (arXiv 2603.22117, Fig. 1b)."""
    mine = [row for row in rows if row["statistic"] == statistic and row["tokens"]]
    if not mine:
        return None
    totals: dict[tuple[str, str], int] = {}
    for row in mine:
        whose = row["policy"], row["series"]
        totals[whose] = totals.get(whose, 0) + row["tokens"]
    log = statistic in ("kl_rl_base", "js")
    values = [
        {
            "policy": row["policy"],
            "series": row["series"],
            "x": (row["low"] * row["high"]) ** 0.5 if log else (row["low"] + row["high"]) / 2,
            "share": row["tokens"] / totals[row["policy"], row["series"]],
            "tokens": row["tokens"],
            "low": row["low"],
            "high": row["high"],
        }
        for row in mine
    ]
    encoding = {
        "x": number("x", OF[statistic].axis, **logarithmic("~e") if log else {}),
        "y": number("share", "share of tokens in the bin", **logarithmic("~e")),
        "color": series(),
        "tooltip": tooltip(("series", None), ("low", ".3~g"), ("high", ".3~g"))
        + tooltip(("share", ".3~%"), ("tokens", ",")),
    }
    mark = {"type": "line", "interpolate": "step", "strokeWidth": 1.5}
    layers: list[Spec] = [{"mark": mark, "encoding": encoding}]
    floor, noise = _noise(mine)
    least = min(row["low"] for row in mine)
    if floor and floor > least:
        layers.append(below_noise(least if log else max(-floor, least), floor))
    return Chart(
        OF[statistic].title or OF[statistic].label,
        f"Tokens by {OF[statistic].axis}, on a log scale. {noise}",
        spec(values, layers),
    )


def above(figures: Rows, statistic: str) -> Chart | None:
    """The share of tokens above each threshold."""
    values = _figures(figures, statistic, "share_above")
    if not values:
        return None
    name = _MAGNITUDES[statistic]
    encoding = {
        "x": number("x", f"{name} above (nats)", **logarithmic("~g")),
        "y": percent("share of tokens"),
        "color": series(),
        "tooltip": figure_tooltip(".2%"),
    }
    layers = [{"mark": line(), "encoding": encoding}, intervals(encoding)]
    floor, noise = _noise(values)
    least = min(row["x"] for row in values)
    if floor > least:
        layers.append(below_noise(least, floor))
    return Chart(
        f"{name} above a threshold",
        f"Share of tokens, with 95 % intervals. {noise}",
        spec(values, layers),
    )


def concentration(figures: Rows) -> Chart | None:
    """How much of Σ|Δlog p| lies in the most shifted tokens."""
    values = _figures(figures, "abs_delta_logp", "share_of_sum_in_top")
    if not values:
        return None
    encoding = {
        "x": ordinal("x", "of the tokens", format="~%"),
        "xOffset": {"field": "series"},
        "y": percent("share of Σ|Δlog p|"),
        "color": series(),
        "tooltip": figure_tooltip(".2%"),
    }
    return Chart(
        "Concentration",
        "Share of the whole |Δlog p| that the most shifted tokens carry, with 95 % intervals. "
        + _noise(values)[1],
        spec(values, [{"mark": "bar", "encoding": encoding}, intervals(encoding)]),
    )


def over_places(figures: Rows, statistic: str) -> Chart | None:
    """A statistic's mean along the response (arXiv 2603.22446)."""
    values = _figures(figures, statistic, "mean_at_relative_position")
    if not values:
        return None
    name = _MAGNITUDES[statistic]
    x = number("x", "relative position in the response", axis={"format": "~%"})
    return Chart(
        f"Mean {name} along the response",
        f"In each twentieth of the response, with 95 % intervals by sample. {_noise(values)[1]}",
        _curve(values, x, f"mean {name} (nats)"),
    )


def over_positions(figures: Rows, statistic: str) -> Chart | None:
    """The same by the distance from the response's start, in tokens."""
    values = _figures(figures, statistic, "mean_at_position")
    if not values:
        return None
    values = [{**row, "from": row["x"] + 1} for row in values]
    name = _MAGNITUDES[statistic]
    x = number("from", "token of the response, from 1", **logarithmic("~s"))
    return Chart(
        f"Mean {name} from the start",
        f"In doubling ranges of tokens, with 95 % intervals by sample. {_noise(values)[1]}",
        _curve(values, x, f"mean {name} (nats)"),
    )


def _curve(values: Rows, x: Spec, title: str) -> Spec:
    above_zero = {"scale": {"domainMin": 0}}  # as the statistics are; bands may go below
    encoding: Spec = {"x": x, "y": number("value", title, **above_zero), "color": series()}
    limits = {"y": number("ci_low"), "y2": {"field": "ci_high"}}
    band = {
        "mark": {"type": "area", "opacity": 0.2, "clip": True},
        "encoding": {"x": x, "color": series(), **limits},
    }
    encoding["tooltip"] = figure_tooltip(".4f")
    return spec(values, [band, {"mark": line(16), "encoding": encoding}])


def quantiles_over_places(figures: Rows, statistic: str) -> Chart | None:
    """A statistic's quantiles along the response (arXiv 2603.22446)."""
    prefix, suffix = "quantile_", "_at_relative_position"
    values = [
        {**value, "quantile": f"{float(figure.removeprefix(prefix).removesuffix(suffix)):.0%}"}
        for figure in sorted({row["figure"] for row in figures if row["figure"].endswith(suffix)})
        if figure.startswith(prefix)
        for value in _figures(figures, statistic, figure)
        if value["value"] > 0  # as the axis has it
    ]
    if not values:
        return None
    name = _MAGNITUDES[statistic]
    encoding = {
        "x": number("x", "relative position in the response", axis={"format": "~%"}),
        "y": number("value", f"{name} (nats)", **logarithmic("~e")),
        "color": series(),
        "strokeDash": {"field": "quantile", "type": "nominal", "legend": {"orient": "top"}},
        "tooltip": [*tooltip(("quantile", None)), *figure_tooltip(".3~g")],
    }
    return Chart(
        f"Quantiles of {name} along the response",
        f"In each twentieth of the response, on a log scale. {_noise(values)[1]}",
        spec(values, [{"mark": "line", "encoding": encoding}]),
    )


def first_choices(figures: Rows) -> Chart | None:
    """Whether what RL prefers was in the base's first choices (arXiv 2603.22446)."""
    values = _figures(figures, "rank_base_of_rl_top1", "share_in_top")
    if not values:
        return None
    encoding = {
        "x": ordinal("x", "first k choices of the base"),
        "y": percent("RL's first choice is among them"),
        "color": series(),
        "tooltip": figure_tooltip(".2%"),
    }
    return Chart(
        "Re-ranked, not invented",
        "Of the tokens where the policies differ (JS > 0.1): how often the RL policy's first "
        "choice is one of the base's first k.",
        spec(values, [{"mark": line(), "encoding": encoding}, intervals(encoding)]),
    )


def gradient(figures: Rows) -> Chart | None:
    """Which tokens carry the policy gradient (arXiv 2603.22117, Lemma 3.1)."""
    values = _figures(figures, "logp_rl", "gradient_share_of_decile")
    if not values:
        return None
    return Chart(
        "Who carries the gradient",
        "Share of Σ(1 − π_RL) by decile of the tokens' probability, the least likely tenth first: "
        "the size of the policy gradient with respect to the logits.",
        _bars(values, percent("share of the gradient"), ".2%"),
    )


def deciles(figures: Rows) -> Chart | None:
    """Δlog p of unlikely and likely tokens (arXiv 2603.22117, Fig. 3b)."""
    values = _figures(figures, "logp_base", "delta_logp_of_decile")
    if not values:
        return None
    _, noise = _noise([row for row in figures if row["statistic"] == "delta_logp"])
    return Chart(
        "Δlog p by probability",
        "Mean by decile of the tokens' probability under the base, the least likely tenth first. "
        + noise,
        _bars(values, number("value", "mean Δlog p (nats)"), ".4f"),
    )


def _bars(values: Rows, y: Spec, form: str) -> Spec:
    encoding = {
        "x": ordinal("x", "decile of probability"),
        "xOffset": {"field": "series"},
        "y": y,
        "color": series(),
        "tooltip": figure_tooltip(form),
    }
    return spec(values, [{"mark": "bar", "encoding": encoding}, intervals(encoding)])


_ENTROPY_BY_DIVERGENCE = {
    "x": {
        "field": "entropy",
        "type": "ordinal",
        "sort": {"field": "order"},
        "title": "entropy of the base (nats)",
        "axis": {"labelAngle": -40},
    },
    "y": {
        "field": "js",
        "type": "ordinal",
        "sort": {"field": "decade", "order": "descending"},
        "title": "JS from",
    },
    "color": {
        "field": "share",
        "type": "quantitative",
        "scale": {"type": "log", "scheme": "viridis"},
        "title": "share of the column",
        "legend": {"format": "~e"},
    },
    "tooltip": tooltip(("entropy", None), ("js", None), ("share", ".3~%"), ("tokens", ",")),
}


def entropy_by_divergence(joint: Rows) -> Chart | None:
    """Large shifts at low entropy as well as high (arXiv 2603.22446)."""
    mine = [row for row in joint if row["statistic"] == "js" and row["tokens"]]
    if not mine:
        return None
    cells: dict[tuple[str, float, int], int] = {}
    totals: dict[tuple[str, float], int] = {}
    for row in mine:
        decade = int(np.floor(np.log10(row["low"]) + 1e-9))
        key = row["policy"], row["entropy_low"], min(decade, -1)
        cells[key] = cells.get(key, 0) + row["tokens"]
        totals[key[:2]] = totals.get(key[:2], 0) + row["tokens"]
    highs = {row["entropy_low"]: row["entropy_high"] for row in mine}
    values = [
        {
            "entropy": f"{low:g} to {highs[low]:g}" if highs[low] else f"{low:g} and more",
            "order": low,
            "js": f"10^{decade}" if decade < -1 else "0.1 and more",
            "decade": decade,
            "share": count / totals[policy, low],
            "tokens": count,
            "policy": policy,
        }
        for (policy, low, decade), count in cells.items()
    ]
    return Chart(
        "Entropy and divergence",
        f"All text, by its tokens' entropy: how far apart the policies are. {_noise(mine)[1]}",
        spec(values, [{"mark": "rect", "encoding": _ENTROPY_BY_DIVERGENCE}]),
    )


def _figures(figures: Rows, statistic: str, figure: str) -> list[dict[str, Any]]:
    names = ("policy", "series", "x", "value", "ci_low", "ci_high", "n_tokens", "noise_floor")
    return [
        {name: row[name] for name in names}
        for row in figures
        if row["statistic"] == statistic and row["figure"] == figure
        if row["value"] is not None and row["n_samples"] > 1
    ]
