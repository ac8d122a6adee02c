"""The Ray session of this process: begun beside other work, kept for the next job, ended at exit.

Ray is imported by the thread that starts it, so that whoever needs none has none.
"""

import atexit
import logging
import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from dlogp_ray.errors import (
    Damaged,
    FingerprintMismatch,
    InputChanged,
    Refused,
)
from dlogp_ray.pipelines.run.local_ray import start_local
from dlogp_ray.pipelines.run.stop import take_back, to_the_end

_CONNECT_TIMEOUT_S = 10
_IDLE_WORKERS = 8
"""Processes that a Ray of this machine's own keeps beyond one a CPU."""
_WARMED_PER_CPU = 2
"""Processes that have imported what reads and writes units before there are any: one of each for
every actor."""


class _Session:
    """One that this process starts or joins, in a thread that lives as long as it.

    Linux ends Ray's processes with the thread that started them.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.started: Future[None] = Future()
        self._end = threading.Event()
        threading.Thread(target=self._run, name="ray-session", daemon=True).start()

    def _run(self) -> None:
        try:
            _start(self.address)
        except BaseException as error:  # noqa: BLE001  (raised where the session is wanted)
            self.started.set_exception(error)
            return
        self.started.set_result(None)
        self._end.wait()

    def end(self) -> None:
        if self.started.exception() is None:
            sys.modules["ray"].shutdown()
        self._end.set()


_own: _Session | None = None


def was_there() -> bool:
    """Whether Ray was there before: this process's caller has started or joined it."""
    ray = sys.modules.get("ray")
    return _own is None and ray is not None and ray.is_initialized()


def address() -> str:
    """The cluster that ``RAY_ADDRESS`` names (a submitted job has it), or a Ray of our own.

    "local" where none is named: Ray would else look for the one that was last started on this
    machine, and wait for minutes if it is gone.
    """
    return os.environ.get("RAY_ADDRESS") or "local"


def begin() -> None:
    """Start or join Ray beside whatever comes next; what is there already stays."""
    global _own
    if was_there():
        return
    if _own is not None and _own.address != address():
        shutdown()
    if _own is None:
        _own = _Session(address())


def join() -> None:
    """Wait until Ray is there.

    Raises:
        Refused: Nothing answers at ``RAY_ADDRESS``, or Ray does not start.
    """
    begin()
    if _own is None:
        return
    try:
        _own.started.result()
    except BaseException:
        shutdown()
        raise
    take_back()


def shutdown() -> None:
    """End the Ray session that jobs of this process have started; the next job starts one anew."""
    global _own
    if _own is not None:
        with to_the_end():
            _own.end()
        _own = None


@contextmanager
def kept() -> Iterator[None]:
    """A job's session is kept for the next, unless the job is stopped amid Ray's work for it."""
    try:
        yield
    except (Refused, FingerprintMismatch, Damaged, InputChanged):
        raise
    except BaseException:
        shutdown()
        raise


def _start(address: str) -> None:
    """In this process.

    Raises:
        Refused: Nothing answers at ``address``, or Ray does not start.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Ray Data itself keeps arguments of its actors in the object store, and Ray's core prints an
    # error about that for every pool whose actors may restart.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray ends idle processes beyond one a CPU, and actors, its own too, count among them: those
    # that read and write would be started anew for every unit (2.5 s).
    os.environ.setdefault("RAY_num_workers_soft_limit", str((os.cpu_count() or 1) + _IDLE_WORKERS))
    _check_answers(address)
    import ray

    # Before Ray's own end, which does not wait for a session that is about to start: what was
    # registered last comes first.
    atexit.unregister(shutdown)
    atexit.register(shutdown)
    with warnings.catch_warnings(), _without_greeting():
        warnings.simplefilter("ignore", FutureWarning)
        # It says that its handler for SIGTERM is not set: ours stays.
        logging.getLogger("ray").setLevel(logging.ERROR)
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if address == "local":
                start_local(include_dashboard=False, **quiet)
            else:
                ray.init(address=address, **quiet)
        except ConnectionError as error:
            # Something listens there; without the cluster's token it answers nothing.
            raise _no_cluster(
                address,
                f"{error}; a cluster that asks for a token needs RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
            ) from None
        except Exception as error:  # of any type: a node that times out is a bare Exception
            raise Refused(
                f"Ray did not start (RAY_ADDRESS={address}): {type(error).__name__}: {error}. "
                "A machine that is short of memory, disk (RAY_TMPDIR) or processor time can be the "
                "cause; the same command tries again"
            ) from error
    if address == "local":
        warm = ray.remote(_import_stages).options(num_cpus=0, max_retries=0)
        for _ in range(_WARMED_PER_CPU * int(ray.cluster_resources().get("CPU", 1))):
            warm.remote()
    import ray.data


def _import_stages() -> None:
    """What the processes that read and write import: Ray gives them such tasks again."""
    import dlogp_ray.analysis.summary
    import dlogp_ray.corpus.rows
    import dlogp_ray.tables.object_folder  # noqa: F401


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes to reach an address where nobody is."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: object) -> Refused:
    return Refused(
        f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); correct it, or unset it "
        "to start Ray on this machine"
    )


_GREETING = re.compile(rb"\[[^\n]*logging\.cc:\d+: Set ray log level [^\n]*\n")
_LAST = b"\0"


@contextmanager
def _without_greeting() -> Iterator[None]:
    """Leave out of standard error what Ray's core, which is not Python, says of its log level.

    All else goes on as it comes: other threads write there too.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    reading, writing = os.pipe()

    def forward() -> None:
        while (said := os.read(reading, 65_536)) and not said.endswith(_LAST):
            os.write(kept, _GREETING.sub(b"", said))
        os.write(kept, _GREETING.sub(b"", said.removesuffix(_LAST)))

    forwarding = threading.Thread(target=forward, daemon=True)
    forwarding.start()
    os.dup2(writing, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.write(writing, _LAST)
        forwarding.join()
        for descriptor in (kept, reading, writing):
            os.close(descriptor)
