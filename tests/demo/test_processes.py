"""A demo that is killed takes the processes that it started with it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

DEMO = """
import os, sys, time
from pathlib import Path
from dlogp_ray.demo.processes import pool_of

def work(name):
    Path(f"{name}.new").write_text(str(os.getpid()))
    os.rename(f"{name}.new", name)
    time.sleep(1000)

if __name__ == "__main__":
    with pool_of(2) as pool:
        list(pool.map(work, sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_they_end_with_it(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "demo.py"
    script.write_text(DEMO)
    files = [tmp_path / "one", tmp_path / "two"]
    demo = subprocess.Popen([sys.executable, script, *files])
    deadline = time.monotonic() + 300
    while not all(file.exists() for file in files):
        assert demo.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = [psutil.Process(int(file.read_text())) for file in files]
    demo.send_signal(number)
    assert demo.wait(timeout=60) == -number
    assert not psutil.wait_procs(workers, timeout=60)[1]
