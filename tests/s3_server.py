"""A real S3 server for tests: SeaweedFS on this machine, and a proxy before it that makes faults.

Without a fault the proxy passes everything on as it is. It answers at the same address during the
whole session, so that processes which started before a test are reached by the test's faults.
"""

import asyncio
import atexit
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any, Literal

import aiohttp
from aiohttp import web
from yarl import URL

START_TIMEOUT_S = 300
ACCESS_KEY, SECRET_KEY = "AKIDTESTS0123456", "tests-secret-4f1c9b"

# Every process of the tests finds the server by these; Ray's workers inherit where they are.
AWS_FILES = Path(tempfile.mkdtemp(prefix="dlogp-tests-aws-"))
atexit.register(shutil.rmtree, AWS_FILES, ignore_errors=True)
os.environ |= {
    "AWS_CONFIG_FILE": str(AWS_FILES / "config"),
    "AWS_SHARED_CREDENTIALS_FILE": str(AWS_FILES / "credentials"),
    "AWS_EC2_METADATA_DISABLED": "true",
}

Kind = Literal["503", "500", "reset", "lost answer", "stall", "cut short", "409", "flaky", "none"]


def write_aws_files(endpoint: str) -> None:
    (AWS_FILES / "config").write_text(f"[default]\nendpoint_url = {endpoint}\n")
    keys = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    (AWS_FILES / "credentials").write_text(f"[default]\n{keys}")


_PORTS = range(20_000, 30_000)
"""Below those that a system gives out by itself, and above those of Ray's workers."""
_PORTS_AT_ONCE = 20
_held: list[Any] = []


def free_ports(n: int) -> list[int]:
    """Ports that no other process of the tests is told, as long as this one lives.

    A server that is told a port binds it later: a free one that two were told would be one's.
    """
    assert n <= _PORTS_AT_ONCE
    for first in range(_PORTS.start, _PORTS.stop, _PORTS_AT_ONCE):
        lock = Path(tempfile.gettempdir(), f"dlogp-tests-ports-{first}").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        ports = range(first, first + n)
        if all(_is_free(port) for port in ports):
            _held.append(lock)
            return list(ports)
        lock.close()
    raise RuntimeError("no ports are free")


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def running_seaweed(folder: Path) -> Iterator[int]:
    """The port of a server that keeps its data in ``folder``; credentials are enforced."""
    (folder / "s3.json").write_text(
        json.dumps(
            {
                "identities": [
                    {
                        "name": "tests",
                        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                    }
                ]
            }
        )
    )
    names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port")
    names += ("volume.port.grpc", "filer.port", "filer.port.grpc", "admin.port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    # By default it binds every interface and sends telemetry.
    command = [
        str(Path(sys.executable).with_name("weed")),
        *("-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-{name}={port}" for name, port in ports.items()),
        *(
            f"-s3.config={folder}/s3.json",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ),
        *("-webdav=false", "-admin.ui=false", "-master.telemetry=false"),
        *(f"-filer.localSocket={folder}/f.sock", f"-s3.localSocket={folder}/s.sock"),
    ]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=folder,
            # It holds 120 MB; near a limit Go's collector never rests (17 % of a core at 200 MiB).
            env=os.environ | {"GOMEMLIMIT": "1GiB"},
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(ports["s3.port"]):
            ended = server.poll() is not None
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"weed did not start:\n{(folder / 'log').read_text()[-3000:]}")
            time.sleep(0.1)
        yield ports["s3.port"]
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 403  # nobody in particular may not list
    except OSError:
        return False
    finally:
        connection.close()


@dataclass
class Fault:
    """What happens to requests.

    Attributes:
        kind: "503", "500", "409": the server's answer, without the request reaching it; "reset":
            the connection breaks before it is passed on; "lost answer": after it was done; "stall":
            no answer comes; "cut short": half of the body arrives, then the connection breaks;
            "flaky": any of these but the stall, with the probability ``rate``; "none": nothing.
        pattern: Which requests, as a regular expression over "METHOD /path?query".
        times: How many of them; the rest pass.
        action: Is called too: before the request is passed on, or when half of it has been.
        rate: Of "flaky".
    """

    kind: Kind
    pattern: str
    times: int = 1
    action: Callable[[], object] | None = None
    rate: float = 0.25
    random: Random = field(default_factory=lambda: Random(0))
    seen: list[str] = field(default_factory=list)
    """The requests that it has met."""


FLAKY: tuple[Kind, ...] = ("503", "500", "reset", "lost answer", "cut short")


class FaultyProxy:
    """Passes requests on to a server; a test injects faults."""

    def __init__(self, port: int) -> None:
        """Start it, in a thread of its own.

        Args:
            port: Where the server listens on this machine.
        """
        self._upstream = port
        self.sent = 0
        """Bytes of answers."""
        self._faults: list[Fault] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def fault(self, kind: Kind, pattern: str, **settings: object) -> Iterator[Fault]:
        """Inject a fault as long as the context lasts."""
        fault = Fault(kind, pattern, **settings)  # type: ignore[arg-type]
        self._faults.append(fault)
        try:
            yield fault
        finally:
            self._faults.remove(fault)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _start(self) -> int:
        # Signatures cover the header Host, so that it must arrive as the client wrote it.
        self._session = aiohttp.ClientSession(
            auto_decompress=False, skip_auto_headers=("User-Agent", "Accept", "Content-Type")
        )
        self._runner = web.ServerRunner(
            web.Server(self._answer, handler_cancellation=True), shutdown_timeout=1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def _kind_of(self, request: str) -> tuple[Kind | None, Fault | None]:
        for fault in self._faults:
            if len(fault.seen) >= fault.times or not re.search(fault.pattern, request):
                continue
            fault.seen.append(request)
            if fault.kind != "flaky":
                return fault.kind, fault
            if fault.random.random() < fault.rate:
                return fault.random.choice(FLAKY), fault
        return None, None

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = await request.content.read()  # `request.read` refuses more than 1 MB
        kind, fault = self._kind_of(f"{request.method} {request.raw_path}")
        if kind in ("503", "500", "409"):
            code = {"503": "SlowDown", "500": "InternalError", "409": "ConditionalRequestConflict"}
            text = f"<Error><Code>{code[kind]}</Code><Message>injected</Message></Error>"
            return web.Response(status=int(kind), text=text, content_type="application/xml")
        if kind == "stall":
            await asyncio.sleep(3600)
        if kind == "reset":
            return self._broken(request)
        if kind == "cut short":
            with suppress(aiohttp.ClientError, OSError):
                async with self._pass_on(request, _half(body)):
                    pass
        if fault is not None and fault.action is not None:
            fault.action()
        if kind == "cut short":
            return self._broken(request)
        async with self._pass_on(request, body) as answer:
            content = await answer.read()
            self.sent += len(content)
            if kind == "lost answer":
                return self._broken(request)
            headers = answer.headers.copy()
            for name in ("Transfer-Encoding", "Connection"):
                headers.pop(name, None)
            if request.method != "HEAD":
                headers["Content-Length"] = str(len(content))
            return web.Response(status=answer.status, headers=headers, body=content)

    def _pass_on(self, request: web.BaseRequest, body: object) -> Any:
        headers = request.headers.copy()
        headers.pop("Expect", None)
        return self._session.request(
            request.method,
            URL(f"http://127.0.0.1:{self._upstream}{request.raw_path}", encoded=True),
            headers=headers,
            data=body or None,
            allow_redirects=False,
        )

    @staticmethod
    def _broken(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


async def _half(body: bytes):  # type: ignore[no-untyped-def]
    yield body[: len(body) // 2]
    raise OSError("cut short")
