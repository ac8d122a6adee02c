"""Drivers that are killed at random moments, one after the other, on a cluster that lives on.

Some do their work there and some in their own process, on the same run. The policies are stubs:
what is tried is the same whatever is scored, and a driver comes to its first object sooner.
"""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from conftest import contents, make_rows, write_jsonl

import dlogp_ray
from dlogp_ray.config import ScoreConfig
from dlogp_ray.config.job import RunOn
from dlogp_ray.tables.verification import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SEEDS, KILLS = 10, 20
ROWS = 2_000
TIMEOUT_S = 400
STUBS = {
    "DLOGP_TESTS_STUB": "1",
    "PYTHONPATH": os.pathsep.join(str(ROOT / "tests" / part) for part in ("", "faults")),
}


@dataclass
class Drivers:
    """Drivers that join one cluster, and what an undisturbed one does."""

    folder: Path
    policies: dict[str, str]
    environment: dict[str, str]
    seconds_to_first_object: dict[RunOn, float] = field(default_factory=dict)
    contents: dict[str, str] | None = None

    def job(self, run_id: str, run_on: RunOn) -> ScoreConfig:
        return ScoreConfig(
            corpus=(str(self.folder / "corpus"),),
            policies=self.policies,
            output=str(self.folder / "runs"),
            run_id=run_id,
            unit_tokens=60,
            actors=2 if run_on == "ray" else 1,
            threads_per_actor=1,
            run_on=run_on,
        )

    def start(self, config: ScoreConfig) -> "subprocess.Popen[str]":
        path = self.folder / f"{config.run_id}-{config.run_on}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return subprocess.Popen(
            [sys.executable, "-m", "dlogp_ray", "score", str(path), "--no-progress"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end_undisturbed(self, driver: "subprocess.Popen[str]", timeout_s: float) -> str:
        """Wait for its end, and check that the run is as if nothing had happened.

        Raises:
            subprocess.TimeoutExpired: It has not ended.
        """
        printed, log = driver.communicate(timeout=timeout_s)
        assert driver.returncode == 0, log
        result = json.loads(printed.splitlines()[-1])
        assert result["sealed"]
        assert contents(result["run"]) == self.contents
        assert verify(dlogp_ray.open_run(result["run"])) == []
        return f"the last scored {result['units_scored']} of {result['units']} units"


@pytest.fixture(scope="module")
def drivers(
    policy_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Drivers]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    cluster = subprocess.Popen(
        [sys.executable, "-m", "cluster.local", "--nodes", "2", "--cpus", "2"],
        cwd=ROOT,
        env=plain | STUBS,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert cluster.stdout is not None
        line = next(line for line in cluster.stdout if line.startswith("export "))
        joined = dict(re.findall(r"(\w+)=(\S+)", line))
        folder = tmp_path_factory.mktemp("rounds")
        write_jsonl(folder / "corpus" / "a.jsonl", make_rows(ROWS))
        policies = {name: str(path) for name, path in policy_folders.items()}
        found = Drivers(folder, policies, plain | STUBS | joined)
        undisturbed(found, "here")
        undisturbed(found, "ray")
        yield found
    finally:
        cluster.send_signal(signal.SIGTERM)
        cluster.wait(timeout=300)


def undisturbed(drivers: Drivers, run_on: RunOn) -> None:
    started = time.monotonic()
    config = drivers.job(f"undisturbed-{run_on}", run_on)
    driver = drivers.start(config)
    while not list(Path(config.run_uri).glob("scores/part-*")):
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.1)
    drivers.seconds_to_first_object[run_on] = time.monotonic() - started
    printed, log = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode == 0, log
    found = contents(json.loads(printed.splitlines()[-1])["run"])
    assert drivers.contents in (None, found)
    drivers.contents = found


# A driver lives up to 1.5 times what one takes to its first object.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_runs_whose_drivers_are_killed_at_random_moments(
    drivers: Drivers, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(seed)
    names = (f"run-{seed}-{number}" for number in itertools.count())
    name = next(names)
    kills = Counter[RunOn]()
    ended = list[str]()
    while kills.total() < KILLS:
        config = drivers.job(name, rng.choice(["here", "ray"]))
        # Over the whole life of a driver, the start too, which is most of it here.
        moment = rng.uniform(0, 1.5 * drivers.seconds_to_first_object[config.run_on])
        # At once: what the killed driver's workers still had in hand comes to its end beside it.
        driver = drivers.start(config)
        try:
            ended.append(drivers.end_undisturbed(driver, moment))
            name = next(names)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.communicate()
            kills[config.run_on] += 1
    config = drivers.job(name, rng.choice(["here", "ray"]))
    ended.append(drivers.end_undisturbed(drivers.start(config), TIMEOUT_S))
    with capsys.disabled():
        sys.stdout.write(f"\nseed {seed}: {dict(kills)} drivers killed; {'; '.join(ended)}\n")
