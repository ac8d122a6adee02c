"""The driver is stopped in the middle; the same command goes on where it was.

Policies are stubs, and one row of the corpus holds the job up until the signal was sent.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import stub_policies
import yaml
from conftest import contents, make_rows, write_jsonl

import dlogp_ray
from dlogp_ray.config import ScoreConfig

START_TIMEOUT_S = 180
TESTS = Path(__file__).parents[1]
STUBS = {
    "DLOGP_TESTS_STUB": "1",
    "PYTHONPATH": os.pathsep.join(str(TESTS / part) for part in ("..", "", "faults")),
}


def start(config: Path) -> subprocess.Popen[str]:
    """A driver of its own, and with a Ray of its own where it asks for one."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "dlogp_ray", "score", str(config), "--no-progress"],
        env=environment | STUBS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts its background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_objects(run: Path, n: int, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(list(run.glob("scores/part-*"))) < n:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "no object came"
        time.sleep(0.005)


def goes_on(job: Path, run: str, undisturbed: dlogp_ray.ScoreResult, log: str) -> None:
    """The same command does what was missing, and only that."""
    assert "the same command goes on" in log
    before = contents(run)
    assert 3 <= len(before) < undisturbed.units
    assert not dlogp_ray.open_run(run).sealed

    driver = start(job)
    printed, log = driver.communicate(timeout=300)
    assert driver.returncode == 0, log
    result = json.loads(printed.splitlines()[-1])
    assert result["sealed"]
    assert result["units_scored"] == undisturbed.units - len(before)
    assert result["rows"] == undisturbed.rows
    # Content hashes cover every value of every row: the same rows, none missing, none twice.
    after = contents(run)
    assert before.items() <= after.items()
    assert after == contents(undisturbed.run)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", pytest.param("ray", marks=pytest.mark.ray)])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_driver_that_is_stopped_loses_nothing_and_does_nothing_twice(
    number: int,
    code: int,
    where: str,
    make_config: Callable[..., ScoreConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub_policies.install(monkeypatch.setattr)
    go_on = tmp_path / "go on"
    rows: list[dict[str, Any] | str] = list(make_rows(600))
    rows[300] = make_rows(1)[0] | {"sample_id": "s300", "generator": f"waits for: {go_on}"}
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    go_on.touch()
    undisturbed = dlogp_ray.score(make_config(corpus=str(corpus)), progress=False)
    go_on.unlink()

    config = make_config(corpus=str(corpus), output=str(tmp_path / "stopped"), run_on=where)
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    driver = start(job)
    wait_for_objects(Path(config.run_uri), 3, driver)
    driver.send_signal(number)
    go_on.touch()
    asked = time.monotonic()
    _, log = driver.communicate(timeout=300)
    assert driver.returncode == code, log
    assert time.monotonic() - asked < 60  # seconds, where the machine is its own
    goes_on(job, config.run_uri, undisturbed, log)


@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_again_and_again_leaves_no_process(
    make_config: Callable[..., ScoreConfig], tmp_path: Path
) -> None:
    rows = [row | {"generator": f"waits for: {tmp_path / 'never'}"} for row in make_rows(20)]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    config = make_config(corpus=str(corpus), run_on="ray")
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    driver = start(job)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not Path(config.run_uri, "run.json").exists():
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.05)
    family = psutil.Process(driver.pid).children(recursive=True)
    assert family
    while driver.poll() is None:
        driver.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, log = driver.communicate(timeout=300)
    assert driver.returncode == 130, log
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
