"""A Ray whose processes come too late is started anew, and leaves none of them."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from dlogp_ray.pipelines.run import local_ray
from dlogp_ray.pipelines.run.local_ray import start_local

LATE = "The current node timed out during startup. This could happen because"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray's start, which leaves a process of Ray's and raises what it is told, while there is."""
    import ray

    waiting = Path(ray.__file__).parent / "_private" / "log_monitor.py"
    script = f"import time; waiting = {str(waiting)!r}; time.sleep(1000)"
    left: list[Exception] = []
    processes: list[psutil.Process] = []

    def init(**options: Any) -> None:
        assert options["address"] == "local"
        child = subprocess.Popen([sys.executable, "-c", script])
        processes.append(psutil.Process(child.pid))
        if left:
            raise left.pop(0)

    monkeypatch.setattr(ray, "init", init)
    yield left, processes
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_it_is_started_anew_without_what_came_too_late(
    starts: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    left, processes = starts
    left += [Exception(LATE)] * 2
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        start_local(num_cpus=1)
        assert [process.is_running() for process in processes] == [False, False, True]
        assert other.poll() is None
        other.communicate(b"\n")
    assert capsys.readouterr().err.count("they are started anew") == 2


@pytest.mark.parametrize("why", [LATE, "no space left"])
def test_what_does_not_start_is_raised(starts: Any, why: str) -> None:
    left, processes = starts
    left += [Exception(why)] * 10
    with pytest.raises(Exception, match=why):
        start_local()
    assert len(processes) == (local_ray.STARTS if why == LATE else 1)


IN_TRUTH = """
import time
import ray
from ray._private import services
from dlogp_ray.pipelines.run.local_ray import start_local

asked, get_node = [], services.get_node

def late(*of_what):
    asked.append(time.monotonic())
    if asked[-1] < asked[0] + 33:
        raise RuntimeError("not there yet")
    return get_node(*of_what)

services.get_node = late
start_local(num_cpus=1, include_dashboard=False)
assert ray.get(ray.remote(lambda: 7).remote()) == 7
nodes = [node for node in ray.nodes() if node["Alive"]]
assert len(nodes) == 1, nodes
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_real_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_TRUTH], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("they are started anew") == 1
