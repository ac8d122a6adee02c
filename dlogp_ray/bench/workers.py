"""Processes that run arms on command, all at once: ours, and those of other engines."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dlogp_ray.bench.texts import GROUP_PROMPT, GROUP_TOKENS
from dlogp_ray.bench.whole import WHOLE
from dlogp_ray.config import BenchConfig
from dlogp_ray.errors import DlogpError, Refused

_END_S = 2.0
"""What a process has to end by itself; amid a pass it does not."""
_PEER_END_S = 5.0
"""Another engine has processes of its own to end."""
LOG_LINES = 20
"""Of what another engine printed, so many lines are shown when it fails."""
Texts = list[tuple[list[int], list[int]]]


class Workers:
    """``config.processes`` processes, each with both policies in memory."""

    def __init__(self, config: BenchConfig, device: str) -> None:
        """Start them and wait until all are ready.

        Raises:
            Refused: A policy can't be loaded.
        """
        # Forked from one process that has imported everything, which takes seconds. Elsewhere than
        # on Linux, system libraries that torch loads may not survive that.
        linux = sys.platform == "linux"
        context: Any = multiprocessing.get_context("forkserver" if linux else "spawn")
        context.set_forkserver_preload(["dlogp_ray.bench.arms", "transformers.modeling_utils"])
        threads = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
        self._workers: list[tuple[Any, Connection]] = []
        for part in range(config.processes):
            here, there = context.Pipe()
            worker = context.Process(target=_serve, args=(config, device, part, there))
            worker.start()
            there.close()  # else the end of the worker would not be seen
            self._workers.append((worker, here))
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
        try:
            self.facts = [self._answer(connection) for _, connection in self._workers]
        except BaseException:
            self.close()
            raise

    def run(self, arm: str, count: int | None = None) -> float:
        """Seconds until the last process has done its share of the arm.

        Args:
            arm: By name.
            count: Of the texts, so many of the first; None for all.
        """
        chosen = self._workers[:1] if arm in WHOLE else self._workers
        started = time.perf_counter()
        for _, connection in chosen:
            self._tell(connection, (arm, count))
        for _, connection in chosen:
            self._answer(connection)
        return time.perf_counter() - started

    def ask(self, what: str) -> list[Any]:
        """``facts`` or ``noise`` of each process."""
        for _, connection in self._workers:
            self._tell(connection, what)
        return [self._answer(connection) for _, connection in self._workers]

    def close(self) -> None:
        """End the processes."""
        for _, connection in self._workers:
            with suppress(OSError):
                connection.send(None)
        until = time.monotonic() + _END_S
        for worker, _ in self._workers:
            worker.join(max(0.0, until - time.monotonic()))
            worker.kill()

    def _tell(self, connection: Connection, what: object) -> None:
        try:
            connection.send(what)
        except OSError:
            raise self._died() from None

    def _answer(self, connection: Connection) -> Any:
        try:
            answer = connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(answer, DlogpError):
            raise answer
        return answer

    def _died(self) -> Refused:
        return Refused(
            "a process of the benchmark died, perhaps for want of memory; try fewer processes, or "
            "smaller policies"
        )


def _serve(config: BenchConfig, device: str, part: int, connection: Connection) -> None:
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from dlogp_ray.bench.arms import Arms

    disable_progress_bar()
    set_verbosity_error()
    try:
        arms = Arms(config, device, part)
        connection.send(arms.facts())
        while (asked := connection.recv()) is not None:
            if asked == "facts":
                connection.send(arms.facts())
            elif asked == "noise":
                connection.send(arms.noise())
            else:
                arms.run(*asked)
                connection.send(None)
    except DlogpError as error:
        connection.send(error)
    except EOFError:  # the benchmark itself is gone
        return
    except Exception as error:  # noqa: BLE001  (told to the process that waits)
        longest = max(
            config.prompt_tokens + config.max_response_tokens,
            GROUP_PROMPT + GROUP_TOKENS if config.groups else 0,
        )
        connection.send(
            Refused(
                f"the policies can't be measured: {type(error).__name__}: {error} (texts have up "
                f"to {longest:,} tokens; for a policy that takes fewer, lower max_response_tokens "
                "and set groups=0)"
            )
        )


def check_peer(name: str, python: str) -> None:
    """Whether a Python has another engine, before anything is loaded.

    Raises:
        Refused: It has not, or can't be run.
    """
    option = _option(name)
    there = f"import importlib.util; print(importlib.util.find_spec({name!r}) is not None)"
    try:
        done = subprocess.run([python, "-c", there], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Refused(f"{option} {python}: {error.strerror}; give the path of a Python") from None
    said = done.stdout.strip()
    if said not in ("True", "False"):
        raise Refused(f"{option} {python}: it is no Python that runs; give the path of one")
    if said == "False":
        raise Refused(
            f"{option} {python}: No module named {name!r} there; install it, or leave the option "
            "out"
        )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}-python"


class Peer:
    """Another engine with the base policy, in a Python of its own: see ``peer_arm``.

    Attributes:
        versions: Of its packages.
    """

    def __init__(
        self,
        name: str,
        python: str,
        model: str,
        dtype: str,
        texts: Mapping[str, Texts],
        threads: int,
    ) -> None:
        """Start it and wait until it has made one pass over a few texts.

        Args:
            name: As ``peer_arm`` knows it.
            python: A Python that has it.
            model: Folder or hub id.
            dtype: Of its weights.
            texts: Name -> prompt and response ids.
            threads: What it may use.

        Raises:
            Refused: It can't be started; the text says what it printed last.
        """
        self._option = _option(name)
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            # Without it, vLLM keeps one core free.
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_CPU_KVCACHE_SPACE": "2",
        }
        self._log = tempfile.TemporaryFile()
        script = str(Path(__file__).with_name("peer_arm.py"))
        self._process = subprocess.Popen(
            [python, script, name, model, dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            start_new_session=True,  # to end it with the processes that it starts
        )
        try:
            self.versions: dict[str, str] = json.loads(self._expect(json.dumps(texts)))
        except BaseException:
            self.close()
            raise

    def run_twice(self, texts: str, count: int | None = None) -> float:
        """Seconds of two passes over named texts, as two policies take them."""
        line = texts if count is None else f"{texts}:{count}"
        return float(self._expect(line)) + float(self._expect(line))

    def close(self) -> None:
        """End it."""
        for ending in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, ending)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PEER_END_S)

    def _expect(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(line, file=self._process.stdin, flush=True)
        got = self._process.stdout.readline().strip()
        if not got:
            self.close()
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
            raise Refused(
                f"{self._option}: it ended before it had answered; see to what it said last, or "
                "leave the option out:\n" + "\n".join(said)
            )
        return got
