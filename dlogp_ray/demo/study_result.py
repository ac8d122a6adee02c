"""The result of the reweighting study: figures with errors, paired tests, a picture."""

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from dlogp_ray.analysis.vega import (
    Spec,
    coloured_intervals,
    drawn,
    line,
    number,
    percent,
    series,
    spec,
)

PACKAGES = ("dlogp_ray", "torch", "transformers", "trl", "numpy")

Runs = Sequence[Mapping[str, Any]]


def write_result(
    out: Path, study: Mapping[str, Any], runs: Runs, baselines: Mapping[str, str]
) -> dict[str, Any]:
    """Write `result.json` and `result.png` into `out`.

    Args:
        out: The study's folder.
        study: Its settings.
        runs: As `reweighting_study.run_arm` returns them.
        baselines: Arm -> the unweighted arm of its kind.

    Returns:
        What `result.json` holds.
    """
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "study": dict(study),
        "median_seconds_a_run": median(run["seconds"] for run in runs),
        "arms": summary(runs, baselines),
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    picture(result["arms"], baselines, out / "result.png")
    return result


def summary(runs: Runs, baselines: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Each arm's accuracy along the training and at its end, and how it differs from its baseline.

    Args:
        runs: `arm`, `seed`, `accuracy` (step -> share).
        baselines: Arm -> the arm that it is compared with, seed by seed.

    Returns:
        Arm -> `curve` (step -> [mean, standard error over seeds]), `final` (each seed's, in order),
        `mean`, `standard_error`, and for arms with another baseline `difference`: its `mean`,
        `standard_error`, and the two-sided p of the paired t test; p is None where all differences
        are equal or there is one seed.
    """
    by_arm: dict[str, dict[int, dict[int, float]]] = {}
    for run in runs:
        curve = {int(step): share for step, share in run["accuracy"].items()}
        by_arm.setdefault(run["arm"], {})[run["seed"]] = curve
    found: dict[str, dict[str, Any]] = {}
    for arm, seeds in by_arm.items():
        steps = sorted(next(iter(seeds.values())))
        final = {seed: curve[steps[-1]] for seed, curve in sorted(seeds.items())}
        found[arm] = {
            "curve": {s: _mean_and_error([c[s] for c in seeds.values()]) for s in steps},
            "final": list(final.values()),
            **dict(zip(("mean", "standard_error"), _mean_and_error(final.values()), strict=True)),
        }
        other = baselines.get(arm, arm)
        if other != arm and other in by_arm:
            last = {seed: curve[steps[-1]] for seed, curve in by_arm[other].items()}
            found[arm]["difference"] = {
                "from": other,
                **paired([final[seed] - last[seed] for seed in final if seed in last]),
            }
    return found


def paired(differences: Sequence[float]) -> dict[str, float | None]:
    """Mean of paired differences, its standard error, and the p of Student's t test of 0."""
    from scipy.stats import t

    mean, error = _mean_and_error(differences)
    p = None
    if error:
        p = float(2 * t.sf(abs(mean) / error, len(differences) - 1))
    return {"mean": mean, "standard_error": error, "p": p}


def _mean_and_error(values: Any) -> tuple[float, float | None]:
    numbers = list(values)
    n = len(numbers)
    mean = math.fsum(numbers) / n
    if n < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in numbers) / (n - 1)
    return mean, math.sqrt(variance / n)


def picture(
    arms: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, str], path: Path
) -> None:
    """Accuracy along the training, a line an arm, a panel a baseline, which comes first;
    bars are standard errors."""
    kinds = list(dict.fromkeys(baselines[arm] for arm in arms))
    panels = [_panel(kind, [a for a in arms if baselines[a] == kind], arms) for kind in kinds]
    path.write_bytes(
        drawn({"hconcat": panels, "resolve": {"scale": {"color": "independent"}}})["png"]
    )


def _panel(kind: str, shown: Sequence[str], arms: Mapping[str, Mapping[str, Any]]) -> Spec:
    rows = [
        {"series": arm, "x": step, "value": mean}
        | {"ci_low": mean - (error or 0.0), "ci_high": mean + (error or 0.0)}
        for arm in shown
        for step, (mean, error) in arms[arm]["curve"].items()
    ]
    encoding = {
        "x": number("x", "optimiser steps"),
        "y": percent("right answers, held-out problems") | {"scale": {"zero": False}},
        "color": series() | {"sort": list(shown)},
    }
    layers = [{"mark": line(), "encoding": encoding}, coloured_intervals(encoding)]
    return spec(rows, layers) | {"title": kind, "width": 380, "height": 300}
