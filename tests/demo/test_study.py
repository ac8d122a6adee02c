"""The reweighting study: its statistics by hand, what is left to do, and one run of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dlogp_ray.demo.reweighting_study import BASELINES, OFFLINE, ONLINE, Study, main, missing
from dlogp_ray.demo.study_result import paired, summary


def runs(arm: str, *finals: float) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "seed": seed, "accuracy": {"0": 0.3, "10": final}}
        for seed, final in enumerate(finals)
    ]


def test_figures_are_those_by_hand() -> None:
    found = summary(
        [*runs("baseline", 0.80, 0.82, 0.84), *runs("low_prob 0.2", 0.83, 0.83, 0.89)], BASELINES
    )
    # 0.82 ± 0.02/√3; differences 0.03, 0.01, 0.05: 0.03 ± 0.02/√3.
    error = 0.02 / math.sqrt(3)
    assert found["baseline"]["mean"] == pytest.approx(0.82)
    assert found["baseline"]["standard_error"] == pytest.approx(error)
    assert found["baseline"]["curve"][0] == (pytest.approx(0.3), pytest.approx(0.0, abs=1e-12))
    assert "difference" not in found["baseline"]
    difference = found["low_prob 0.2"]["difference"]
    assert difference["from"] == "baseline"
    assert difference["mean"] == pytest.approx(0.03)
    assert difference["standard_error"] == pytest.approx(error)


def test_the_paired_test_is_students() -> None:
    # Of four degrees of freedom, 2.776 has p = 0.05, and 4.604 p = 0.01 (tables of t).
    def of(t: float) -> float:
        # Five differences with mean t and standard error 1: t ± √5·(√2, √2, 0...) has variance 5.
        spread = math.sqrt(10)
        found = paired([t - spread, t + spread, t, t, t])
        assert found["standard_error"] == pytest.approx(1.0)
        assert found["p"] is not None
        return found["p"]

    assert of(2.776) == pytest.approx(0.05, abs=1e-4)
    assert of(4.604) == pytest.approx(0.01, abs=1e-4)
    assert paired([0.1, 0.1])["p"] is None or paired([0.1, 0.1])["p"] < 1e-6
    assert paired([0.1]) == {"mean": 0.1, "standard_error": None, "p": None}


def test_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    study = Study(seeds=2)
    (tmp_path / "runs").mkdir()
    settings = {**vars(study), "seeds": 1}
    path = tmp_path / "runs" / "low_prob-0.2-seed-0.json"
    path.write_text(json.dumps({"study": settings}))
    left = missing(tmp_path, study, ["baseline", "low_prob 0.2"])
    assert left == [("baseline", 0), ("baseline", 1), ("low_prob 0.2", 1)]
    with pytest.raises(ValueError, match="other settings"):
        missing(tmp_path, Study(seeds=2, steps=7), ["low_prob 0.2"])


@pytest.mark.slow
def test_every_arm_runs_and_the_study_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--seeds", "1", "--steps", "2", "--prompts", "2", "--samples", "4"]
    arguments = ["--out", str(tmp_path), "--problems", "20", "--workers", "1", *few]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["arms"]) == {*ONLINE, *OFFLINE}
    for arm in result["arms"].values():
        assert list(arm["curve"]) == ["0", "2"]
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(written) == len(BASELINES)
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == written
