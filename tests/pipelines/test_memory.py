"""Private memory of driver and actors does not grow with the number of units done."""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import make_policy_folder, write_jsonl

# It waits for units, of which a busy machine makes few.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3_000)]

UNITS = 112
ROWS_PER_UNIT = 400
ROW_TOKENS = 50
# A forward pass holds 50 to 100 MiB for a moment, so that single looks at an actor differ by 15 %
# within one unit. The median over twenty units is what stays.
WINDOWS = {"tenth": range(10, 30), "hundredth": range(90, 110)}


def private_bytes(driver: int) -> dict[str, int]:
    """Unique set size of the driver and of each scoring actor of its own Ray."""
    found = {}
    for process in [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]:
        try:
            title = " ".join(process.cmdline())
            if process.pid == driver or "PoolActor" in title:
                name = "driver" if process.pid == driver else f"actor {process.pid}"
                found[name] = process.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.parametrize("where", ["here", "ray"])
def test_memory_after_a_hundred_units_is_that_after_ten(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    rows = [
        {
            "sample_id": f"s{index}",
            "prompt_ids": [rng.randrange(2, 24) for _ in range(10)],
            "response_ids": [rng.randrange(2, 24) for _ in range(ROW_TOKENS - 10)],
        }
        for index in range(UNITS * ROWS_PER_UNIT)
    ]
    size = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3}
    job = {
        "corpus": str(write_jsonl(tmp_path / "corpus.jsonl", rows)),
        "policies": {
            name: str(make_policy_folder(tmp_path / name, seed, **size))
            for seed, name in enumerate(("base", "rl"))
        },
        "output": str(tmp_path / "runs"),
        "run_id": "memory",
        "unit_tokens": ROWS_PER_UNIT * ROW_TOKENS,
        "run_on": where,
    }
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(job))
    driver = subprocess.Popen(
        [sys.executable, "-m", "dlogp_ray", "score", str(config), "--no-progress"],
        stdout=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )
    samples: dict[str, dict[str, list[int]]] = {name: {} for name in WINDOWS}
    run = tmp_path / "runs/memory"
    while driver.poll() is None:
        done = len(list(run.glob("scores/part-*")))
        for name, window in WINDOWS.items():
            if done in window:
                for process, size_bytes in private_bytes(driver.pid).items():
                    samples[name].setdefault(process, []).append(size_bytes)
        time.sleep(0.2)
    output, _ = driver.communicate()
    result = json.loads(output.splitlines()[-1])
    assert result["exit_code"] == 0
    assert result["units"] >= 110
    at = {
        when: {process: statistics.median(sizes) for process, sizes in seen.items()}
        for when, seen in samples.items()
    }
    with capsys.disabled():
        for process, before in at["tenth"].items():
            after = at["hundredth"][process]
            figures = f"{before / 2**20:.1f} -> {after / 2**20:.1f} MiB ({after / before - 1:+.2%})"
            sys.stdout.write(f"\n{process}: {figures}")
    assert set(at["tenth"]) == set(at["hundredth"])
    assert len(at["tenth"]) >= (2 if where == "ray" else 1)  # the driver, and an actor
    for process, before in at["tenth"].items():
        assert at["hundredth"][process] < 1.05 * before, process
