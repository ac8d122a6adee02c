"""The sparsity tables: statistics of groups as rows that one can query.

figures      one row a figure: statistic, figure, x -> value, se, ci_low, ci_high, n_tokens,
             n_samples, noise_floor: of the statistic, where the run has measured one; and without:
             what it would be without each of the folds that samples are dealt into by their ids
histograms   one row a bin: statistic, low, high -> tokens, noise_floor
joint        one row a bin of two: entropy_low, entropy_high, statistic, low, high -> tokens
shifted      one row a vocabulary id, the most shifted first: tokens, total and mean Δlog p

Each begins with policy, step, generator and the columns that the analysis is split by. Where one
text was scored under several checkpoints of known step, by generator:

training           figures, as above
training_r2        one row a bin of R²: low, high -> tokens
training_moved     one row a vocabulary id and checkpoint: tokens that were half way first there
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from dlogp_ray.analysis.sparsity.groups import Group, Grouped
from dlogp_ray.analysis.sparsity.ratios import Figure, Key
from dlogp_ray.analysis.sparsity.statistics import (
    ENTROPY_EDGES,
    HISTOGRAMS,
    JOINT_EDGES,
    Statistics,
)
from dlogp_ray.analysis.sparsity.training import R2_BINS

MOST_SHIFTED = 1_000
"""Vocabulary ids of each group that the table names."""

_FLOOR_OF = {name: "delta_logp" for name in ("abs_delta_logp", "logp", "r_squared")}
"""Statistics that are made of another one."""

_FIGURE = pa.schema(
    [(name, pa.string()) for name in ("statistic", "figure")]
    + [(name, pa.float64()) for name in ("x", "value", "se", "ci_low", "ci_high")]
    + [(name, pa.int64()) for name in ("n_tokens", "n_samples")]
    + [("noise_floor", pa.float64()), ("without", pa.list_(pa.float64()))]
)
_BIN = pa.schema(
    [
        ("statistic", pa.string()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("tokens", pa.int64()),
        ("noise_floor", pa.float64()),
    ]
)
_JOINT = pa.schema([("entropy_low", pa.float64()), ("entropy_high", pa.float64()), *_BIN])
_SHIFTED = pa.schema(
    [
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("tokens", pa.int64()),
        ("raised", pa.float64()),
        ("lowered", pa.float64()),
        ("delta_logp_total", pa.float64()),
        ("delta_logp_mean", pa.float64()),
    ]
)


def sparsity_tables(
    grouped: Grouped,
    by: Sequence[str],
    floors: Mapping[str, float],
    surface: Callable[[int], str | None],
) -> dict[str, pa.Table]:
    """All tables, by name.

    Args:
        grouped: The statistics.
        by: Columns that they are split by.
        floors: As ``Statistics.of``.
        surface: How a vocabulary id looks as text.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _SCHEMAS}
    order = sorted(grouped.groups, key=_order)
    for group in order:
        statistics = grouped.groups[group]
        whose: dict[str, Any] = dict(group.by)
        whose |= {"policy": group.policy, "step": group.step, "generator": group.generator}
        for name, of in _ROWS.items():
            rows[name] += [whose | row | _noise(row, floors) for row in of(statistics)]
        rows["shifted"] += [{**whose, **row} for row in _shifted(statistics, surface)]
    split = [
        ("policy", pa.string()),
        ("step", pa.int32()),
        ("generator", pa.string()),
        *((name, pa.string()) for name in by),
    ]
    return {
        name: pa.Table.from_pylist(rows[name], schema=pa.schema([*split, *schema]))
        for name, schema in _SCHEMAS.items()
    }


def training_tables(
    grouped: Grouped, floors: Mapping[str, float], surface: Callable[[int], str | None]
) -> dict[str, pa.Table]:
    """The tables against training time; none where nothing was scored under several checkpoints.

    Args:
        grouped: The statistics.
        floors: As ``Statistics.of``.
        surface: How a vocabulary id looks as text.
    """
    if not grouped.training:
        return {}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _TRAINING}
    for generator in sorted(grouped.training, key=lambda name: name or ""):
        training, whose = grouped.training[generator], {"generator": generator}
        rows["training"] += [
            whose | row | _noise(row, floors) for row in _rows(training.ratios.figures())
        ]
        edges = np.linspace(0, 1, R2_BINS + 1)
        bins = _bins("r_squared", edges, training.r2_histogram)
        rows["training_r2"] += [whose | row | _noise(row, floors) for row in bins]
        moved = training.moved
        for index in np.argsort(-moved.counts.sum(1), kind="stable")[:MOST_SHIFTED].tolist():
            token = int(moved.ids[index])
            for step, count in zip(training.steps, moved.counts[index].tolist(), strict=True):
                row = {"token_id": token, "token": surface(token), "step": step, "tokens": count}
                rows["training_moved"].append(whose | row)
    generator_field = [("generator", pa.string())]
    return {
        name: pa.Table.from_pylist(rows[name], schema=pa.schema([*generator_field, *schema]))
        for name, schema in _TRAINING.items()
    }


def names_of_tables() -> set[str]:
    """Columns that some table has of its own, so that figures can't be split by others so named."""
    own = {name for schema in (*_SCHEMAS.values(), *_TRAINING.values()) for name in schema.names}
    return own | {"analysis"}


def _noise(row: Mapping[str, Any], floors: Mapping[str, float]) -> dict[str, Any]:
    return {"noise_floor": floors.get(_FLOOR_OF.get(row["statistic"], row["statistic"]))}


def _order(group: Group) -> tuple[Any, ...]:
    return (
        group.step is not None,
        group.step or 0,
        group.policy,
        group.generator or "",
        tuple(value or "" for _, value in group.by),
    )


def _figures(statistics: Statistics) -> Iterator[dict[str, Any]]:
    yield from _rows(statistics.figures())


def _rows(figures: Mapping[Key, Figure]) -> Iterator[dict[str, Any]]:
    for (statistic, figure, at), estimate in figures.items():
        yield {
            "statistic": statistic,
            "figure": figure,
            "x": at,
            "value": estimate.value,
            "se": estimate.se,
            "ci_low": estimate.ci_low,
            "ci_high": estimate.ci_high,
            "n_tokens": estimate.n_tokens,
            "n_samples": estimate.n_samples,
            "without": estimate.without,
        }


def _histograms(statistics: Statistics) -> Iterator[dict[str, Any]]:
    for name, counts in statistics.histograms.items():
        yield from _bins(name, HISTOGRAMS[name], counts)


def _joint(statistics: Statistics) -> Iterator[dict[str, Any]]:
    for name, table in statistics.joint.items():
        edges = [*ENTROPY_EDGES.tolist(), None]
        for (low, high), counts in zip(pairwise(edges), table, strict=True):
            for row in _bins(name, JOINT_EDGES, counts):
                yield {"entropy_low": low, "entropy_high": high, **row}


def _bins(name: str, edges: np.ndarray, counts: np.ndarray) -> Iterator[dict[str, Any]]:
    for (low, high), count in zip(pairwise(edges.tolist()), counts.tolist(), strict=True):
        yield {"statistic": name, "low": low, "high": high, "tokens": count}


def _shifted(
    statistics: Statistics, surface: Callable[[int], str | None]
) -> Iterator[dict[str, Any]]:
    shifted = statistics.shifted
    for index in shifted.most(MOST_SHIFTED).tolist():
        token, count = int(shifted.ids[index]), int(shifted.counts[index])
        raised, lowered = float(shifted.raised[index]), float(shifted.lowered[index])
        yield {
            "token_id": token,
            "token": surface(token),
            "tokens": count,
            "raised": raised,
            "lowered": lowered,
            "delta_logp_total": raised + lowered,
            "delta_logp_mean": (raised + lowered) / count,
        }


_ROWS: dict[str, Callable[[Statistics], Iterator[dict[str, Any]]]] = {
    "figures": _figures,
    "histograms": _histograms,
    "joint": _joint,
}
_MOVED = pa.schema(
    [
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("step", pa.int32()),
        ("tokens", pa.int64()),
    ]
)
_TRAINING = {"training": _FIGURE, "training_r2": _BIN, "training_moved": _MOVED}
_SCHEMAS = {"figures": _FIGURE, "histograms": _BIN, "joint": _JOINT, "shifted": _SHIFTED}
