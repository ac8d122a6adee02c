"""Whether a store is fit for runs: it is tried out, under a folder that is removed afterwards."""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dlogp_ray.errors import Refused, Unanswered
from dlogp_ray.store import objects

_LARGE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        name: What.
        fit: Whether it came out as a run needs it.
        detail: What was seen.
    """

    name: str
    fit: bool
    detail: str


def examine(output: str, *, writers: int = 16, rounds: int = 5) -> list[Finding]:
    """Try what a run relies on, with small objects in a folder of its own under ``output``.

    Args:
        output: Folder or URL under which runs are to be made.
        writers: How many race to create one object.
        rounds: Races.

    Raises:
        Refused: There is no access, or no such bucket.
    """
    output = objects.absolute(output)
    folder = f"{output}/.doctor-{uuid.uuid4().hex}"
    trials: tuple[Callable[[str], str], ...] = (
        _read_after_write,
        _listing,
        _create_once,
        lambda where: _race(where, writers, rounds),
        _speed,
    )
    names = ("read after write", "listing", "conditional create", "race", "speed")
    findings = []
    objects.check_writable(output, conditional=False)
    with _removed_afterwards(folder):
        for name, trial in zip(names, trials, strict=True):
            try:
                findings.append(Finding(name, True, trial(f"{folder}/{name.replace(' ', '-')}")))
            except (AssertionError, OSError, ValueError, NotImplementedError) as error:
                findings.append(Finding(name, False, str(error)))
    return findings


@contextlib.contextmanager
def _removed_afterwards(folder: str) -> Iterator[None]:
    """The folder goes, and on a disk those above it that were not there before."""
    filesystem, path = objects.open_store(folder)
    above = [p for p in Path(path).parents if objects.is_local(folder) and not p.exists()]
    try:
        yield
    finally:
        # There is nothing where nothing could be made.
        with contextlib.suppress(OSError, Refused, Unanswered), objects.refusals(folder):
            filesystem.rm(path, recursive=True)
        for parent in above:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _expect(got: object, expected: object, what: str) -> None:
    if got != expected:
        raise AssertionError(f"{what}: expected {expected!r}, got {got!r}")


def _read_after_write(folder: str) -> str:
    for number in range(10):
        uri = f"{folder}/{number}"
        _expect(objects.exists(uri), False, "before it is created, an object is there")
        objects.create(uri, b"first")
        _expect(objects.read(uri), b"first", "read after create")
        objects.replace(uri, b"second")
        _expect(objects.read(uri), b"second", "read after replace")
        _expect(objects.read_range(uri, 1, 3), b"ec", "a range of it")
    return "10 objects were read as they had just been written"


def _listing(folder: str) -> str:
    names = {f"{number:02}" for number in range(20)}
    _expect(_names(folder), set(), "a listing of nothing")
    for name in names:
        objects.create(f"{folder}/{name}", name.encode())
    _expect(_names(folder), names, "a listing right after the last create")
    for name in names:
        objects.delete(f"{folder}/{name}")
    _expect(_names(folder), set(), "a listing right after the last delete")
    return "20 objects were listed right after they were created, and none after they were deleted"


def _names(folder: str) -> set[str]:
    return {name for name, _ in objects.list_objects(folder)}


def _create_once(folder: str) -> str:
    objects.create(f"{folder}/a", b"first")
    _expect(objects.create(f"{folder}/a", b"second"), False, "a second create of one key succeeds")
    _expect(objects.read(f"{folder}/a"), b"first", "the object after it")
    return "a second create was refused"


def _race(folder: str, writers: int, rounds: int) -> str:
    with ThreadPoolExecutor(writers) as pool:
        for number in range(rounds):
            uri, barrier = f"{folder}/{number}", threading.Barrier(writers)

            def write(writer: int, uri: str = uri, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return objects.create(uri, f"writer {writer}".encode())

            won = [writer for writer, first in enumerate(pool.map(write, range(writers))) if first]
            if len(won) > 1:
                raise AssertionError(
                    f"of {writers} creates of one key at once, {len(won)} succeeded: they are not "
                    "atomic. One job at a time can use this store, with single_writer: true"
                )
            # Nobody is told of his success where an answer was lost and the create done again.
            allowed = [f"writer {writer}".encode() for writer in won or range(writers)]
            if objects.read(uri) not in allowed:
                raise AssertionError("the object is not that of the writer who was told so")
    return f"of {writers} creates of one key at once, one succeeded, in each of {rounds} rounds"


def _speed(folder: str) -> str:
    started = time.perf_counter()
    for number in range(5):
        objects.create(f"{folder}/small-{number}", b"")
    latency_ms = (time.perf_counter() - started) / 5 * 1e3
    started = time.perf_counter()
    objects.create(f"{folder}/large", bytes(_LARGE_BYTES))
    up = _LARGE_BYTES / (time.perf_counter() - started) / 1e6
    started = time.perf_counter()
    objects.read(f"{folder}/large")
    down = _LARGE_BYTES / (time.perf_counter() - started) / 1e6
    return f"{latency_ms:.0f} ms a create, {up:,.0f} MB/s up and {down:,.0f} MB/s down"


def print_findings(output: str, findings: Sequence[Finding], console: Console) -> dict[str, Any]:
    """What was found, for people; the same as a JSON document is returned."""
    fit = all(finding.fit for finding in findings)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for finding in findings:
        table.add_row(finding.name, "ok" if finding.fit else "UNFIT", finding.detail)
    console.print(table)
    console.print(f"{output} is {'fit' if fit else 'NOT fit'} for runs", highlight=False)
    return {"output": output, "fit": fit, "findings": [asdict(finding) for finding in findings]}
