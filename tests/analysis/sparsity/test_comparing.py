"""Two analyses side by side: differences by hand, and what can't be compared."""

import io
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from dlogp_ray.analysis.sparsity.comparing import compared, headline_differences
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
    with pytest.raises(Refused, match="no figure in common"):
        compared(a, pa.Table.from_pylist([figure(0.5, 0.1, policy="other")]))
    with pytest.raises(Refused, match="split by the same columns"):
        compared(a, a.drop_columns(["correct"]))
