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
    """Accuracy along the training, a line an arm, a panel a baseline; bars are standard errors."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    kinds = list(dict.fromkeys(baselines[arm] for arm in arms))
    figure = Figure(figsize=(5.2 * len(kinds), 4.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        shown = [arm for arm in arms if baselines[arm] == kind]
        for index, arm in enumerate(shown):
            curve = arms[arm]["curve"]
            axes.errorbar(
                list(curve),
                [mean for mean, _ in curve.values()],
                [error or 0.0 for _, error in curve.values()],
                label=arm,
                color="black" if arm == kind else f"C{index - 1}",
                linestyle="--" if arm == kind else "-",
                linewidth=1.5,
                capsize=2,
            )
        axes.set_title(kind)
        axes.set_xlabel("optimiser steps")
        axes.set_ylabel("right answers, held-out problems")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)
