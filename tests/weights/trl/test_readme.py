"""The trainers' README is run, from the top, as a reader would run it."""

import re
from pathlib import Path
from typing import Any

import pytest

from dlogp_ray import weights

README = Path(weights.__file__).with_name("README.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def first_log(trainer: Any, name: str) -> float:
    return next(float(log[name]) for log in trainer.state.log_history if name in log)


def test_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLOGP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DISABLE_TQDM", "1")
    found: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        code = code.replace('"report_to": "none"', '"report_to": "none", "logging_steps": 1')
        exec(code, found)
    # Replay: 32 groups of 8 are four batches of 64.
    for name in ("replay", "on_the_fly", "dpo", "kto"):
        assert found[name].state.global_step == 4, name
    assert first_log(found["sft"], "loss") > 0
    # The first step's policy is the one that was scored: no ratio is clipped, and it is its own
    # reference: −log σ(0) in DPO, 1 − σ(0) in KTO.
    assert first_log(found["replay"], "clip_ratio/region_mean") == 0
    assert first_log(found["dpo"], "loss") == pytest.approx(0.6931, abs=1e-4)
    assert first_log(found["kto"], "loss") == pytest.approx(0.5, abs=1e-4)
