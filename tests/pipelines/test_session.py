"""The Ray session of a process: one for all its jobs, and whoever had one before keeps it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from score_tables import made_up_run, score_rows

from dlogp_ray.config import SparsityConfig
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.sparsity.sparsity import sparsity

JOBS = """
import json, sys
import dlogp_ray

said = {"ray at first": "ray" in sys.modules}

def job(name):
    config = dlogp_ray.SparsityConfig(run=sys.argv[1], name=name, run_on="ray")
    return dlogp_ray.sparsity(config, progress=False).spent["start"]

def node():
    import ray
    return ray.nodes()[0]["NodeID"] if ray.is_initialized() else None

said["start"] = job("first")
said["first"] = node()
job("second")
said["second"] = node()
dlogp_ray.shutdown()
said["ended"] = node()
print(json.dumps(said))
"""


@pytest.mark.ray
def test_jobs_of_a_process_share_a_session(tmp_path: Path) -> None:
    run = made_up_run(str(tmp_path / "run"), [score_rows(5, seed=seed) for seed in range(3)])
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", JOBS, run.uri],
        env=kept,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert not said["ray at first"]
    assert said["first"] == said["second"] is not None
    assert said["ended"] is None
    assert said["start"] > 1  # no Ray is there within a second


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_session_that_was_there_is_used_and_left(tmp_path: Path) -> None:
    import ray

    before = ray.nodes()[0]["NodeID"]
    run = made_up_run(str(tmp_path / "run"), [score_rows(5)])
    sparsity(SparsityConfig(run=run.uri, run_on="ray"), progress=False)
    session.shutdown()
    assert ray.is_initialized()
    assert ray.nodes()[0]["NodeID"] == before


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session, "_own", None)


@pytest.mark.usefixtures("no_session")
def test_a_cluster_that_is_not_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    session.begin()  # says nothing: whoever needs it is told
    with pytest.raises(Refused, match="no Ray cluster answers"):
        session.join()
    with pytest.raises(Refused, match="no Ray cluster answers"):  # it is tried again
        session.join()


def test_a_ray_that_does_not_start_is_one_message(tmp_path: Path) -> None:
    # Sockets' addresses have at most 107 bytes, and Ray makes its own in this folder.
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(  # this process may have a Ray
        [sys.executable, "-c", "from dlogp_ray.pipelines.run import session; session.join()"],
        env=kept | {"RAY_TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dlogp_ray.errors.Refused: Ray did not start")
    assert "OSError" in last
    assert last.endswith("the same command tries again")


GREETED = """
import os, sys, threading
from dlogp_ray.pipelines.run.session import _without_greeting
with _without_greeting():
    os.write(2, b"[2026-01-01 00:00:00,000 I 1 2] logging.cc:303: Set ray log level from x to 3\\n")
    print("a thread's own words", file=sys.stderr, flush=True)
    os.write(2, b"[2026-01-01 00:00:00,000 E 1 2] other.cc:1: something is wrong\\n")
print("afterwards", file=sys.stderr)
"""


def test_of_what_is_said_while_ray_starts_only_its_greeting_is_left_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GREETED], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines() == [
        "a thread's own words",
        "[2026-01-01 00:00:00,000 E 1 2] other.cc:1: something is wrong",
        "afterwards",
    ]


SLOW_END = """
import os, signal, sys, time
from dlogp_ray.errors import Stopped
from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.run.stop import stop_on_sigterm

try:
    with stop_on_sigterm() as stop:
        session.begin()
        if sys.argv[1] == "joined":
            session.join()
        else:
            session._own.started.result()  # amid what is done beside Ray's start
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(100)
        finally:
            time.sleep(6)  # what there is to end
except Stopped as error:
    session.shutdown()
    sys.exit(error.exit_code)
"""


@pytest.mark.ray
@pytest.mark.parametrize("when", ["joined", "starting"])
def test_sigterm_ends_a_process_with_ray_as_one_without(when: str) -> None:
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", SLOW_END, when],
        env=kept,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 143, done.stderr
    if when == "joined":
        assert "SIGTERM received" not in done.stderr
