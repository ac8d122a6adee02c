"""Progress for people: the rate is that of the work, without what comes before it."""

import re

import pytest

from dlogp_ray.pipelines.run import progress
from dlogp_ray.pipelines.run.progress import UnitProgress


def test_the_rate_begins_with_the_first_unit_s_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 s of loading, then units of 1,000 tokens in 10 s each, of one actor."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with UnitProgress(3, 3_000, enabled=True) as bar:
        now = 210.0
        bar.advance(1_000, 10.0)
        now = 226.0
        bar.advance(1_000, 10.0)
    line = r"done (.*) units, ([\d,]+) tokens/s, (\d+) s left"
    first, second = re.findall(line, capsys.readouterr().err)
    assert first == ("1/3", "100", "20")
    assert second == ("2/3", "77", "13")  # 2,000 tokens in 26 s


def test_several_actors_add_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two at once, each 10 s a unit: 200 tokens/s, as soon as both have ended one."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with UnitProgress(2, 2_000, enabled=True) as bar:
        now = 120.0
        bar.advance(1_000, 10.0)
        bar.advance(1_000, 10.0)
    assert "done 2/2 units, 200 tokens/s, 0 s left" in capsys.readouterr().err
