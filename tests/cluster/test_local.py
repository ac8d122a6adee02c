"""`python -m cluster.local`: it starts, is joined by its line alone, and leaves nothing behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
JOIN = """
import os, ray
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
print("CPUS", sorted(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
where = ray.remote(num_cpus=2)(lambda: ray.get_runtime_context().get_node_id()).remote()
print("WORKER", ray.get(where) in {n["NodeID"] for n in ray.nodes() if "CPU" in n["Resources"]})
"""


@pytest.fixture
def cluster() -> Iterator["subprocess.Popen[str]"]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.local", "--nodes", "2", "--cpus", "2"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that it is ended with all of its processes, whatever happens
    )
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=300)


def exports(process: "subprocess.Popen[str]") -> dict[str, str]:
    """The variables of the line to paste."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith("export "):
            return dict(re.findall(r"(\w+)=(\S+)", line))
    raise AssertionError("it ended before it said how to join it")


def names(processes: list[psutil.Process]) -> list[str]:
    """Of those that are there: some have ended meanwhile."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(process.name())
    return found


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; an ended one that nobody has waited for does not."""
    alive = []
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.NoSuchProcess:
            pass
    return alive


@pytest.mark.ray
def test_it_is_joined_by_its_line_and_leaves_nothing_behind(
    cluster: "subprocess.Popen[str]",
) -> None:
    joined = exports(cluster)
    folder = Path(joined["RAY_AUTH_TOKEN_PATH"]).parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | joined
    driver = subprocess.run(
        [sys.executable, "-c", JOIN], env=environment, capture_output=True, text=True, timeout=300
    )
    assert "CPUS [0, 2.0, 2.0]" in driver.stdout, driver.stderr
    assert "WORKER True" in driver.stdout

    mine = psutil.Process(cluster.pid).children(recursive=True)
    assert names(mine).count("raylet") == 3
    pointers = list(Path("/tmp/ray").glob("ray_current_cluster"))
    assert not [p for p in pointers if p.read_text() == joined["RAY_ADDRESS"]]

    cluster.send_signal(signal.SIGTERM)
    assert cluster.wait(timeout=120) == 0
    deadline = time.monotonic() + 120
    while running(mine) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(mine)
    assert not folder.exists()
