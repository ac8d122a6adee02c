"""The doctor says of stores that are fit that they are, and of others why not."""

import itertools
import json
import re
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3_server import FaultyProxy
from typer.testing import CliRunner

from dlogp_ray.cli import app
from dlogp_ray.errors import Refused, Unanswered, UnfitStore
from dlogp_ray.store import check_writable, objects
from dlogp_ray.store import s3 as s3_module
from dlogp_ray.store.fitness import examine
from dlogp_ray.tables.run import open_run

NAMES = ["read after write", "listing", "conditional create", "race", "speed"]
_numbers = itertools.count()


class Elsewhere(MemoryFileSystem):
    """A store of another kind, which can be made unfit."""

    protocol = "elsewhere"
    store: dict[str, Any] = {}  # noqa: RUF012  (fsspec's own spelling)
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        return super()._strip_protocol(path.replace("elsewhere://", "memory://"))


@pytest.fixture
def elsewhere() -> str:
    fsspec.register_implementation("elsewhere", Elsewhere, clobber=True)
    return f"elsewhere://fitness-{next(_numbers)}/runs"


def test_what_ends_with_its_process_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="memory://runs: what is there ends with its process"):
        objects.absolute("memory://runs")


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_a_store_that_is_fit(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    output = str(tmp_path / "runs") if kind == "disk" else request.getfixturevalue("bucket")
    findings = examine(output, writers=8, rounds=2)
    assert [finding.name for finding in findings] == NAMES
    assert all(finding.fit for finding in findings), findings
    filesystem, path = objects.open_store(output)
    assert not [key for key in filesystem.find(path) if "doctor" in key or "probe" in key]


def unfit(findings: list[Any]) -> dict[str, str]:
    return {finding.name: finding.detail for finding in findings if not finding.fit}


def test_a_store_that_overwrites(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Elsewhere
    plain = kind.pipe_file
    monkeypatch.setattr(
        kind, "pipe_file", lambda self, path, data, mode="overwrite": plain(self, path, data)
    )
    found = unfit(examine(elsewhere))
    assert found.keys() == {"conditional create", "race"}
    assert "a second create of one key succeeds" in found["conditional create"]
    with pytest.raises(UnfitStore, match="single_writer: true") as raised:
        check_writable(elsewhere)
    assert raised.value.exit_code == 5
    check_writable(elsewhere, conditional=False)


def test_a_store_that_looks_first_and_writes_then(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a second create is refused, but of two at once both succeed
    kind = Elsewhere
    plain, lock = kind.pipe_file, threading.Lock()
    looked: Counter[str] = Counter()
    twice: defaultdict[str, threading.Event] = defaultdict(threading.Event)

    def look_first(self: Any, path: str, data: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        if "/race/" in path:  # nobody writes before two have looked
            with lock:
                looked[path] += 1
                if looked[path] == 2:
                    twice[path].set()
            assert twice[path].wait(300)
        plain(self, path, data)

    monkeypatch.setattr(kind, "pipe_file", look_first)
    found = unfit(examine(elsewhere))
    assert found.keys() == {"race"}
    assert "they are not atomic" in found["race"]
    check_writable(elsewhere)  # which tries no race


def test_a_store_whose_listing_lags(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Elsewhere
    plain, before = kind.ls, []

    def lagging(self: Any, path: str, detail: bool = True) -> Any:
        before.append(plain(self, path, detail) if self.exists(path) else [])
        return before[-2] if len(before) > 1 else []

    monkeypatch.setattr(kind, "ls", lagging)
    assert "a listing right after the last create" in unfit(examine(elsewhere))["listing"]


def test_no_access_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="nothing can be written there"):
        examine(str(tmp_path / "file" / "runs"))


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    assert all(finding.fit for finding in examine(str(tmp_path / "not" / "there"), rounds=1))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, s3: FaultyProxy
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    once = {"connect_timeout": 1, "read_timeout": 1, "retries": {"total_max_attempts": 1}}
    monkeypatch.setitem(s3_module.CONFIG, False, once)
    with pytest.raises(Unanswered, match=r"s3://bucket/runs.*Could not connect"):
        examine("s3://bucket/runs")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "expected a path or URL, got ''"),
        ("s3://", "expected a path or URL, got 's3://'"),
        ("gs://bucket/runs", "store that is installed: Please install gcsfs"),
        ("nosuch://bucket/runs", "store that is installed"),
        ("s3://KEY:HUSHHUSH@bucket/runs", "the address carries credentials"),
        ("https://host/x?a=1&X-Amz-Signature=HUSHHUSH", "the address carries credentials"),
    ],
)
def test_addresses_that_are_none_are_refused(address: str, said: str) -> None:
    """Of every command that takes one: what was given is checked before it is used."""
    for call in (examine, open_run):
        with pytest.raises(Refused, match=re.escape(said)) as refused:
            call(address)
        assert "HUSHHUSH" not in str(refused.value)


def test_the_command(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["doctor", elsewhere, "--writers", "3", "--rounds", "2"])
    assert done.exit_code == 0
    assert f"{elsewhere} is fit for runs" in done.stdout
    assert "of 3 creates of one key at once" in done.stdout.replace("\n", " ")
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["fit"] is True
    assert [finding["name"] for finding in document["findings"]] == NAMES

    kind = Elsewhere
    plain = kind.pipe_file
    monkeypatch.setattr(
        kind, "pipe_file", lambda self, path, data, mode="overwrite": plain(self, path, data)
    )
    done = CliRunner().invoke(app, ["doctor", elsewhere])
    assert done.exit_code == 5
    assert "NOT fit" in done.stdout
