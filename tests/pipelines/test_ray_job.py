"""`ray job submit` to a real head with its job server, as the README says."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import make_rows, write_jsonl
from s3_server import free_ports

import dlogp_ray

REPOSITORY = Path(__file__).parents[2]
# What is tried is the way there and back, not what is scored.
STUBS = {
    "DLOGP_TESTS_STUB": "1",
    "PYTHONPATH": os.pathsep.join(str(REPOSITORY / "tests" / part) for part in ("", "faults")),
}
BIN = Path(sys.executable).parent


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A Ray head that lives as long as the test: the address of its job server, and its log."""
    port, *_ = free_ports(6)
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
    environment |= STUBS
    environment["RAY_agent_register_timeout_ms"] = "300000"  # 30 s, on a busy machine too few
    environment.pop("RAY_ADDRESS", None)
    log = (tmp_path_factory.mktemp("head") / "log").open("w")
    process = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", "--disable-usage-stats",
            f"--port={port}", f"--dashboard-port={port + 1}", "--dashboard-host=127.0.0.1",
            "--node-ip-address=127.0.0.1", "--num-cpus=2", "--object-store-memory=200000000",
            f"--dashboard-agent-listen-port={port + 2}", f"--dashboard-agent-grpc-port={port + 3}",
            f"--ray-client-server-port={port + 4}", f"--metrics-export-port={port + 5}",
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port + 1}"
    deadline = time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=5)
            break
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.5)
    yield address, Path(log.name)
    # This head's processes and no others: `ray stop` would end every Ray of the machine.
    head_process = psutil.Process(process.pid)
    family = [head_process, *head_process.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=300)


@pytest.mark.ray
def test_a_submitted_job_ends_and_its_tables_are_there(
    head: tuple[str, Path], tmp_path: Path, policy_folders: dict[str, Path]
) -> None:
    address, log_of_head = head
    job = {
        "corpus": str(write_jsonl(tmp_path / "corpus.jsonl", make_rows(30))),
        "policies": {name: str(folder) for name, folder in policy_folders.items()},
        "output": str(tmp_path / "runs"),
        "run_id": "submitted",
        "unit_tokens": 200,
        "actors": 1,
    }
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(job))
    submitted = subprocess.run(
        [
            BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".",
            "--", "python", "jobs/score.py", "--config", str(config),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    log = submitted.stdout + submitted.stderr + log_of_head.read_text()
    assert submitted.returncode == 0, log
    assert "succeeded" in log
    line = next(line for line in log.splitlines() if line.startswith('{"run"'))
    assert json.loads(line)["exit_code"] == 0
    run = dlogp_ray.open_run(str(tmp_path / "runs/submitted"))
    assert run.sealed
    assert run.sql("SELECT count(*), count(DISTINCT sample_id) FROM scores").fetchall() == [
        (30, 30)
    ]
