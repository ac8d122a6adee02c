"""The driver is stopped in the middle; the same command goes on where it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import contents

import dlogp_ray
from dlogp_ray.config import ScoreConfig

START_TIMEOUT_S = 180


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "dlogp_ray.cli", "score", str(config), "--no-progress"]


def start(config: Path) -> subprocess.Popen[str]:
    """A driver of its own, and with a Ray of its own where it asks for one."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        command(config),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts its background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_objects(run: Path, n: int, driver: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(list(run.glob("scores/part-*"))) < n:
        assert driver is None or driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "no object came"
        time.sleep(0.005)


def goes_on(disturbed: ScoreConfig, undisturbed: Any, log: str) -> None:
    """The same job does what was missing, and only that."""
    assert "the same command goes on" in log
    run, units = str(disturbed.run_uri), undisturbed.result.units
    before = contents(run)
    assert 3 <= len(before) < units
    assert not dlogp_ray.open_run(run).sealed

    result = dlogp_ray.score(disturbed, progress=False)
    assert (result.exit_code, result.sealed) == (0, True)
    assert result.units_scored == units - len(before)
    assert result.rows == undisturbed.result.rows
    # Content hashes cover every value of every row: the same rows, none missing, none twice.
    after = contents(run)
    assert before.items() <= after.items()
    assert after == contents(undisturbed.result.run)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "ray"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_driver_that_is_stopped_loses_nothing_and_does_nothing_twice(
    number: int, code: int, where: str, many_units: Any, tmp_path: Path
) -> None:
    config = many_units.elsewhere(tmp_path).model_copy(update={"run_on": where})
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    driver = start(job)
    wait_for_objects(Path(config.run_uri), 3, driver)
    driver.send_signal(number)
    asked = time.monotonic()
    _, log = driver.communicate(timeout=300)
    assert driver.returncode == code, log
    assert time.monotonic() - asked < 60  # seconds, where the machine is its own
    goes_on(config, many_units, log)
