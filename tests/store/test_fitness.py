"""The doctor says of stores that are fit that they are, and of others why not."""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

from dlogp_ray.cli import app
from dlogp_ray.errors import Refused, UnfitStore
from dlogp_ray.store import check_writable, objects
from dlogp_ray.store.fitness import examine

NAMES = ["read after write", "listing", "conditional create", "race", "speed"]
_numbers = itertools.count()


@pytest.fixture
def memory() -> str:
    return f"memory://fitness-{next(_numbers)}/runs"


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_a_store_that_is_fit(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    output = str(tmp_path / "runs") if kind == "disk" else request.getfixturevalue("bucket")
    findings = examine(output)
    assert [finding.name for finding in findings] == NAMES
    assert all(finding.fit for finding in findings), findings
    filesystem, path = objects.open_store(output)
    assert not [key for key in filesystem.find(path) if "doctor" in key or "probe" in key]


def unfit(findings: list[Any]) -> dict[str, str]:
    return {finding.name: finding.detail for finding in findings if not finding.fit}


def test_a_store_that_overwrites(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(fsspec.filesystem("memory"))
    plain = kind.pipe_file
    monkeypatch.setattr(
        kind, "pipe_file", lambda self, path, data, mode="overwrite": plain(self, path, data)
    )
    found = unfit(examine(memory))
    assert found.keys() == {"conditional create", "race"}
    assert "a second create of one key succeeds" in found["conditional create"]
    with pytest.raises(UnfitStore, match="single_writer: true") as raised:
        check_writable(memory)
    assert raised.value.exit_code == 5
    check_writable(memory, conditional=False)


def test_a_store_that_looks_first_and_writes_then(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a second create is refused, but of two at once both succeed
    kind = type(fsspec.filesystem("memory"))
    plain = kind.pipe_file

    def look_first(self: Any, path: str, data: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        time.sleep(0.01)
        plain(self, path, data)

    monkeypatch.setattr(kind, "pipe_file", look_first)
    found = unfit(examine(memory))
    assert found.keys() == {"race"}
    assert "they are not atomic" in found["race"]
    check_writable(memory)  # which tries no race


def test_a_store_whose_listing_lags(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(fsspec.filesystem("memory"))
    plain, before = kind.ls, []

    def lagging(self: Any, path: str, detail: bool = True) -> Any:
        before.append(plain(self, path, detail) if self.exists(path) else [])
        return before[-2] if len(before) > 1 else []

    monkeypatch.setattr(kind, "ls", lagging)
    assert "a listing right after the last create" in unfit(examine(memory))["listing"]


def test_no_access_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="nothing can be written there"):
        examine(str(tmp_path / "file" / "runs"))


def test_the_command(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["doctor", memory, "--writers", "3", "--rounds", "2"])
    assert done.exit_code == 0
    assert f"{memory} is fit for runs" in done.stdout
    assert "of 3 creates of one key at once" in done.stdout.replace("\n", " ")
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["fit"] is True
    assert [finding["name"] for finding in document["findings"]] == NAMES

    kind = type(fsspec.filesystem("memory"))
    plain = kind.pipe_file
    monkeypatch.setattr(
        kind, "pipe_file", lambda self, path, data, mode="overwrite": plain(self, path, data)
    )
    done = CliRunner().invoke(app, ["doctor", memory])
    assert done.exit_code == 5
    assert "NOT fit" in done.stdout
