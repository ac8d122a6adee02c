"""Two analyses side by side: differences by hand, and what can't be compared."""

import io
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from dlogp_ray.analysis.sparsity.comparing import compared, headline_differences, notes
from dlogp_ray.analysis.sparsity.folds import folds_of
from dlogp_ray.analysis.sparsity.ratios import Part, Ratios
from dlogp_ray.errors import Refused


def figure(value: float | None, se: float | None, **fields: Any) -> dict[str, Any]:
    named = {"policy": "rl", "step": 100, "generator": "base", "correct": "true"}
    named |= {"statistic": "js", "figure": "share_above", "x": 0.1}
    numbers = {"value": value, "se": se, "ci_low": None, "ci_high": None}
    return named | numbers | {"n_tokens": 10, "n_samples": 3, "noise_floor": 0.02} | fields


def test_differences_by_hand() -> None:
    a = [figure(0.5, 0.03), figure(2.0, None, figure="mean", x=None), figure(None, None, x=1.0)]
    b = [figure(None, None, x=1.0), figure(0.4, 0.04, step=200, n_tokens=20)]
    b += [figure(3.0, 0.1, figure="mean", x=None), figure(1.0, 0.1, generator="rl")]
    rows = compared(pa.Table.from_pylist(a), pa.Table.from_pylist(b)).to_pylist()
    first, second, third = rows
    # √(0.03² + 0.04²) = 0.05, of steps that differ
    assert first["difference"] == pytest.approx(0.1)
    assert first["difference_se"] == pytest.approx(0.05)
    assert first["difference_ci_low"] == pytest.approx(0.1 - 1.959964 * 0.05)
    assert (first["value_a"], first["value_b"], first["n_tokens_b"]) == (0.5, 0.4, 20)
    assert (second["difference"], second["difference_se"]) == (-1.0, None)
    assert third["difference"] is None
    sink = io.StringIO()
    Console(file=sink, width=200).print(headline_differences(pa.Table.from_pylist(rows)))
    line = next(line for line in sink.getvalue().splitlines() if "JS > 0.1" in line)
    assert line.split()[:3] == ["rl", "base", "true"]
    assert "50.00% ± 3.00%" in line
    assert line.rstrip().endswith("10.00% ± 5.00%")


def test_what_has_nothing_in_common_is_refused() -> None:
    a = pa.Table.from_pylist([figure(0.5, 0.1)])
    with pytest.raises(
        Refused, match=r"no figure in common.*rl on text of base.*other on text of base"
    ):
        compared(a, pa.Table.from_pylist([figure(0.5, 0.1, policy="other")]))
    with pytest.raises(Refused, match="split by the same columns"):
        compared(a, a.drop_columns(["correct"]))


KEY = ("delta_logp", "mean", None)


def scored(
    ids: list[str], y: np.ndarray, n: np.ndarray, floor: float = 0.02, **fields: Any
) -> dict[str, Any]:
    """A row of figures: the mean over tokens of samples with n_i tokens and sums y_i."""
    found = Ratios.of([Part(KEY, y, n)], folds_of(ids)).figures()[KEY]
    row = figure(found.value, found.se, statistic="delta_logp", figure="mean", x=None)
    return row | {"without": found.without, "noise_floor": floor} | fields


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    (row,) = compared(pa.Table.from_pylist([a]), pa.Table.from_pylist([b])).to_pylist()
    return row


def test_the_error_of_a_difference_is_that_of_leaving_out_each_fold_of_both() -> None:
    """Against a plain loop over the folds, whole samples left out of both runs."""
    rng = np.random.default_rng(0)
    ids = [f"s{i}" for i in range(60)]
    n = rng.integers(1, 30, 60).astype(float)
    y = n * rng.normal(0.3, 0.5, 60)
    z = y + n * rng.normal(0.01, 0.02, 60)
    row = difference(scored(ids, z, n), scored(ids, y, n))
    folds = np.array([zlib.crc32(name.encode()) % 16 for name in ids])
    without = np.array(
        [
            z[folds != k].sum() / n[folds != k].sum() - y[folds != k].sum() / n[folds != k].sum()
            for k in sorted(set(folds))
        ]
    )
    k = len(without)
    assert row["paired"]
    assert row["difference"] == pytest.approx(z.sum() / n.sum() - y.sum() / n.sum())
    expected = np.sqrt((k - 1) / k * ((without - without.mean()) ** 2).sum())
    assert row["difference_se"] == pytest.approx(expected, rel=1e-9)
    # 15 degrees of freedom: 2.131, by the table of Student's t.
    assert row["difference_ci_high"] - row["difference"] == pytest.approx(
        2.131 * expected, rel=1e-3
    )


def test_a_run_beside_itself_differs_by_nothing() -> None:
    rng = np.random.default_rng(1)
    ids = [f"s{i}" for i in range(40)]
    row = scored(ids, rng.normal(size=40), np.full(40, 5.0))
    found = difference(row, row)
    assert (found["difference"], found["difference_se"]) == (0.0, 0.0)


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_errors_of_differences_are_those_that_chance_makes(shared: float) -> None:
    """Over 600 pairs of runs with a true difference of 0, of which a part has the same samples.

    The variance of 600 draws is right to √(2/600) = 6 %, and the errors' mean square to less: 20 %
    are three such deviations.
    """
    rng = np.random.default_rng(2)
    size, same = 200, round(200 * shared)
    differences, squares = [], []
    for _ in range(600):
        a_ids = [f"s{i}" for i in range(size)]
        b_ids = [f"s{i}" if i < same else f"t{i}" for i in range(size)]
        n = rng.integers(5, 20, size).astype(float)
        a = rng.normal(0.0, 1.0, size)
        b = np.where(np.arange(size) < same, a, rng.normal(0.0, 1.0, size))
        b = b + rng.normal(0.0, 0.1, size)
        row = difference(scored(a_ids, n * a, n), scored(b_ids, n * b, n))
        differences.append(row["difference"])
        squares.append(row["difference_se"] ** 2)
    assert np.mean(squares) == pytest.approx(np.var(differences), rel=0.2)


def floors(raised: float, floor: float, at: dict[float, float]) -> list[dict[str, Any]]:
    rows = [figure(raised, 0.1, statistic="delta_logp", figure="share_raised", x=None)]
    rows += [
        figure(value, 0.1, statistic="delta_logp", figure="share_raised_above", x=x)
        for x, value in at.items()
    ]
    return [row | {"noise_floor": floor} for row in rows]


def shown(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> tuple[str, list[str]]:
    rows = compared(pa.Table.from_pylist(a), pa.Table.from_pylist(b))
    sink = io.StringIO()
    Console(file=sink, width=200).print(headline_differences(rows))
    return sink.getvalue(), notes(rows, (60, 60, 60))


def test_what_is_raised_is_told_beyond_one_floor_in_both() -> None:
    at = {0.01: 0.5, 0.03: 0.2}
    text, told = shown(floors(0.64, 2e-6, at), floors(0.2, 0.02, at | {0.03: 0.19}))
    (line,) = (line for line in text.splitlines() if "raised" in line)
    assert "raised > 0.03" in line  # the smallest beyond 0.02
    assert "20.00%" in line
    assert "19.00%" in line
    assert "64" not in text
    assert any("by more than 0.03 nats in both" in note for note in told)


def test_runs_with_the_same_floor_are_told_beyond_it() -> None:
    text, told = shown(floors(0.64, 0.02, {0.03: 0.5}), floors(0.6, 0.02, {0.03: 0.5}))
    assert "64.00%" in text
    assert "raised >" not in text
    assert not any("floor" in note for note in told)


def test_analyses_of_before_say_that_floors_differ() -> None:
    text, told = shown(floors(0.64, 2e-6, {}), floors(0.2, 0.02, {}))
    assert "raised" not in text
    assert any("can't be compared; `dlogp sparsity` makes" in note for note in told)
    assert any("as if the runs had no samples in common" in note for note in told)


def test_samples_of_one_fold_alone_count_as_independent() -> None:
    """Without that fold nothing is left, of which an error could come."""
    ids = [name for name in (f"s{i}" for i in range(100)) if zlib.crc32(name.encode()) % 16 == 3]
    a = scored(ids, np.arange(len(ids), dtype=float), np.full(len(ids), 5.0))
    b = scored(ids, np.arange(len(ids), dtype=float)[::-1], np.full(len(ids), 5.0))
    row = difference(a, b)
    assert not row["paired"]
    assert row["difference_se"] == pytest.approx(np.hypot(a["se"], b["se"]))
