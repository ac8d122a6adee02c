"""An S3 that accepts and never answers: it is asked a few times, that is said, and it ends."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dlogp_ray import events, store
from dlogp_ray.cli import app
from dlogp_ray.errors import Refused, Unanswered
from dlogp_ray.store import patient_s3
from dlogp_ray.store import s3 as s3_module
from dlogp_ray.store.patient_s3 import PatientS3

TRIES = {False: 2, True: 3}
"""Fewer than in truth: pauses between them double."""


class Silent:
    """Accepts connections, reads, and says nothing; or says something to the first ones."""

    def __init__(self, answer: bytes = b"") -> None:
        self.requests: list[bytes] = []
        self._answer = answer
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                connection, _ = self.listening.accept()
                self._open.append(connection)
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()
                continue
            return

    def _read(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self.requests.append(connection.recv(65_536))
            if self._answer:
                head, end, body = self._answer.partition(b"\r\n\r\n")
                to_head = self.requests[-1].startswith(b"HEAD ") and b" 403 " in head
                connection.sendall(head + end + (b"" if to_head else body))
                connection.close()
            while connection.recv(65_536):
                pass

    def close(self) -> None:
        self.listening.close()
        for connection in self._open:
            connection.close()


def credentials(server: Silent) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": server.address,
        "AWS_ACCESS_KEY_ID": "AKIDTESTS0123456",
        "AWS_SECRET_ACCESS_KEY": "tests-secret",
    }


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    """The endpoint of every S3 address; seconds are tenths."""
    with quick(Silent(), monkeypatch, 0.3) as server:
        yield server


@contextlib.contextmanager
def quick(
    server: Silent, monkeypatch: pytest.MonkeyPatch, read_timeout: float = 30.0
) -> Iterator[Silent]:
    """``server`` is every S3 address; only one that says nothing wants a short time."""
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    for patient, config in s3_module.CONFIG.items():
        tries = {"mode": "standard", "total_max_attempts": TRIES[patient]}
        monkeypatch.setitem(
            s3_module.CONFIG, patient, config | {"read_timeout": read_timeout, "retries": tries}
        )
    for module in (events, patient_s3):
        monkeypatch.setattr(module, "SAID_FIRST_S", 0.2)
        monkeypatch.setattr(module, "SAID_EVERY_S", 0.5)
    PatientS3.clear_instance_cache()
    yield server
    server.close()
    PatientS3.clear_instance_cache()


@pytest.mark.parametrize(
    ("patient", "ask"),
    [
        (False, lambda uri: store.read(uri)),
        (True, lambda uri: store.read(uri)),
        (False, lambda uri: store.read_range(uri, 0, 10)),
        (False, lambda uri: store.exists(uri)),
        (False, lambda uri: list(store.list_objects(uri))),
        (False, lambda uri: store.entry(uri)),
        (False, lambda uri: store.create(uri, b"data")),
        (True, lambda uri: store.create(uri, b"data")),
        (False, lambda uri: store.replace(uri, b"data")),
        (False, lambda uri: store.opened(uri).__enter__()),
    ],
)
def test_one_layer_asks_again(
    ask: Any, patient: bool, silent: Silent, capsys: pytest.CaptureFixture[str]
) -> None:
    held = store.patience() if patient else contextlib.nullcontext()
    with held, pytest.raises(Unanswered, match=r"s3://bucket/some.*: no answer in \d+ s: Read"):
        ask("s3://bucket/some/key")
    assert len(silent.requests) == TRIES[patient]
    assert "dlogp: waiting for s3://bucket/some" in capsys.readouterr().err


COMMANDS = [
    ["show", "s3://bucket/runs/r"],
    ["query", "s3://bucket/runs/r", "SELECT 1"],
    ["verify", "s3://bucket/runs/r"],
    ["sparsity", "s3://bucket/runs/r"],
    ["compare", "s3://bucket/runs/r", "s3://bucket/runs/s"],
    ["reweight", "s3://bucket/runs/r", "--scheme", "delta"],
    ["doctor", "s3://bucket/runs"],
    ["score", "{job}"],
]
"""``{job}`` reads its corpus there."""
ERROR_500 = b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"
ANSWERS = {
    "500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: %d\r\n\r\n%s"
    % (len(ERROR_500), ERROR_500),
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
}


def run_command(words: list[str], policy_folders: dict[str, Path], tmp_path: Path) -> Result:
    job = tmp_path / "job.yaml"
    policies = "".join(f"  {name}: {folder}\n" for name, folder in policy_folders.items())
    job.write_text(
        f"corpus: s3://bucket/runs/c.jsonl\noutput: {tmp_path}\nrun_id: r\npolicies:\n{policies}"
    )
    return CliRunner().invoke(app, [word.format(job=job) for word in words])


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_commands_that_read_end_with_the_address(
    words: list[str], silent: Silent, policy_folders: dict[str, Path], tmp_path: Path
) -> None:
    done = run_command(words, policy_folders, tmp_path)
    assert isinstance(done.exception, Unanswered), done.exception
    assert done.exception.exit_code == 4
    assert "s3://bucket/runs" in str(done.exception)
    assert "no answer" in str(done.exception)
    assert len(silent.requests) <= 2 * TRIES[False]


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_store_that_answers_wrongly_for_ever_is_told_with_the_address(
    words: list[str],
    answer: bytes,
    policy_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with quick(Silent(answer), monkeypatch) as server:
        done = run_command(words, policy_folders, tmp_path)
    assert isinstance(done.exception, Unanswered), repr(done.exception)
    assert done.exception.exit_code == 4
    assert "s3://bucket/runs" in str(done.exception)
    assert "no answer" not in str(done.exception)
    assert 0 < len(server.requests) < 20


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_store_where_nobody_listens_is_told_with_the_address(
    words: list[str],
    scheme: str,
    policy_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Silent()
    server.close()
    with quick(server, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address.replace("http", scheme))
        done = run_command(words, policy_folders, tmp_path)
    assert isinstance(done.exception, Unanswered), repr(done.exception)
    assert "s3://bucket/runs" in str(done.exception)


CODES = ["RequestTimeTooSkewed", "AccessDenied"]
"""Servers differ in what they say of it; an answer to HEAD has no body, and no code."""


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("code", CODES)
def test_a_clock_that_is_off_is_named(
    code: str,
    words: list[str],
    policy_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = format_datetime(datetime.now(UTC) - timedelta(minutes=20), usegmt=True)
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    head = f"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nDate: {theirs}\r\n"
    answer = f"{head}Content-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with quick(Silent(answer.encode()), monkeypatch):
        done = run_command(words, policy_folders, tmp_path)
    assert isinstance(done.exception, Refused), repr(done.exception)
    assert f"and the store's {theirs}: set the clock" in str(done.exception)


def test_a_clock_that_is_right_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = format_datetime(datetime.now(UTC), usegmt=True)
    body = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    head = f"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nDate: {theirs}\r\n"
    answer = f"{head}Content-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with (
        quick(Silent(answer.encode()), monkeypatch),
        pytest.raises(Refused, match=r"access is denied .*; check the credentials"),
    ):
        store.read("s3://bucket/key")


def test_real_waits_end_within_two_minutes() -> None:
    # 20 s to answer, four times, and pauses of at most 1, 2 and 4 s.
    assert s3_module.longest_s(s3_module.CONFIG[False]) == 87 + 10 < 120
    assert s3_module.longest_s(s3_module.CONFIG[True]) == 8 * 60 + 71 + 10


@pytest.mark.slow
def test_a_command_that_reads_ends_within_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Silent()
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    PatientS3.clear_instance_cache()
    started = time.monotonic()
    done = CliRunner().invoke(app, ["show", "s3://bucket/runs/r"])
    seconds = time.monotonic() - started
    server.close()
    PatientS3.clear_instance_cache()
    assert isinstance(done.exception, Unanswered)
    assert len(server.requests) == 4
    assert 60 < seconds < 120


def test_credentials_of_an_endpoint_are_not_told(
    silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = silent.address.replace("://", "://user:HUSHHUSH@")
    monkeypatch.setenv("AWS_ENDPOINT_URL", secret)
    PatientS3.clear_instance_cache()
    with pytest.raises(Exception, match="s3://bucket") as raised:
        store.read("s3://bucket/key")
    assert "HUSHHUSH" not in str(raised.value)
    assert os.environ["AWS_ENDPOINT_URL"] == secret
