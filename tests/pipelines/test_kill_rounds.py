"""Drivers that are killed at random moments, one after the other, on a cluster that lives on."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import contents, write_jsonl

import dlogp_ray
from dlogp_ray.config import ScoreConfig
from dlogp_ray.demo.pair import checkpoint_path, rl_name
from dlogp_ray.demo.sampling import sample_corpus
from dlogp_ray.demo.task import held_out_problems
from dlogp_ray.tables.verification import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SEEDS, KILLS = 10, 20
PROBLEMS = 1_000
TIMEOUT_S = 180


@dataclass
class Drivers:
    """Drivers that join one cluster, and what an undisturbed one does."""

    folder: Path
    environment: dict[str, str]
    seconds_to_first_object: float = 0.0
    contents: dict[str, str] | None = None

    def job(self, run_id: str) -> ScoreConfig:
        return ScoreConfig(
            corpus=(str(self.folder / "corpus"),),
            policies={"base": str(checkpoint_path("base")), "rl": str(checkpoint_path(rl_name()))},
            output=str(self.folder / "runs"),
            run_id=run_id,
            unit_tokens=60,
            actors=2,
            threads_per_actor=1,
            run_on="ray",
        )

    def start(self, config: ScoreConfig) -> "subprocess.Popen[str]":
        path = self.folder / f"{config.run_id}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return subprocess.Popen(
            [sys.executable, "-m", "dlogp_ray.cli", "score", str(path), "--no-progress"],
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
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drivers]:
    cluster = subprocess.Popen(
        [sys.executable, "-m", "cluster.local", "--nodes", "2", "--cpus", "2"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert cluster.stdout is not None
        line = next(line for line in cluster.stdout if line.startswith("export "))
        joined = dict(re.findall(r"(\w+)=(\S+)", line))
        folder = tmp_path_factory.mktemp("rounds")
        problems = held_out_problems(PROBLEMS, 0)
        rows = [
            row
            for name in ("base", rl_name())
            for row in sample_corpus(checkpoint_path(name), problems, samples_per_problem=1, seed=0)
        ]
        write_jsonl(folder / "corpus" / "a.jsonl", rows)
        found = Drivers(folder, os.environ | joined)
        started = time.monotonic()
        config = found.job("undisturbed")
        driver = found.start(config)
        while not list(Path(config.run_uri).glob("scores/part-*")):
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.1)
        found.seconds_to_first_object = time.monotonic() - started
        printed, log = driver.communicate(timeout=TIMEOUT_S)
        assert driver.returncode == 0, log
        found.contents = contents(json.loads(printed.splitlines()[-1])["run"])
        yield found
    finally:
        cluster.send_signal(signal.SIGTERM)
        cluster.wait(timeout=60)


# A driver lives up to 1.5 times what one takes to its first object: 20 of them, on a slow machine,
# for a quarter of an hour.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_runs_whose_drivers_are_killed_at_random_moments(
    drivers: Drivers, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(seed)
    runs = (drivers.job(f"run-{seed}-{number}") for number in itertools.count())
    config, kills = next(runs), 0
    ended = list[str]()
    while kills < KILLS:
        # Over the whole life of a driver, the start too, which is most of it here.
        moment = rng.uniform(0, 1.5 * drivers.seconds_to_first_object)
        # At once: what the killed driver's workers still had in hand comes to its end beside it.
        driver = drivers.start(config)
        try:
            ended.append(drivers.end_undisturbed(driver, moment))
            config = next(runs)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.communicate()
            kills += 1
    ended.append(drivers.end_undisturbed(drivers.start(config), TIMEOUT_S))
    with capsys.disabled():
        sys.stdout.write(f"\nseed {seed}: {kills} drivers killed; {'; '.join(ended)}\n")
