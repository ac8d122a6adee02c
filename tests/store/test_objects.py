"""Objects are created whole and once, on a disk and in a store."""

import errno
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from dlogp_ray import store

_numbers = itertools.count()


@pytest.fixture(params=["disk", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty folder."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/run"
    if request.param == "disk":
        return str(tmp_path / "run")
    return f"memory://store-tests-{next(_numbers)}/run"


def test_an_object_is_created_once(folder: str) -> None:
    assert store.create(f"{folder}/a", b"first")
    assert not store.create(f"{folder}/a", b"second")
    assert store.read(f"{folder}/a") == b"first"


def test_an_object_can_be_empty_and_its_folder_new(folder: str) -> None:
    assert store.create(f"{folder}/deep/er/a", b"")
    assert store.exists(f"{folder}/deep/er/a")
    assert not store.create(f"{folder}/deep/er/a", b"x")
    assert store.read(f"{folder}/deep/er/a") == b""


def test_a_listing_holds_the_objects_of_one_folder(folder: str) -> None:
    store.create(f"{folder}/a", b"12345")
    store.create(f"{folder}/b", b"")
    store.create(f"{folder}/below/c", b"")
    listing = dict(store.list_objects(folder))
    assert listing.keys() == {"a", "b"}
    assert (listing["a"].size, listing["b"].size) == (5, 0)
    assert listing["a"].etag != ""
    assert list(store.list_objects(f"{folder}/none")) == []


def test_replace_and_delete(folder: str) -> None:
    for data in (b"first", b"second"):
        store.replace(f"{folder}/a", data)
        assert store.read(f"{folder}/a") == data
    store.delete(f"{folder}/a")
    assert not store.exists(f"{folder}/a")
    store.delete(f"{folder}/a")  # there is nothing to remove, which is what was asked
    with pytest.raises(FileNotFoundError):
        store.read(f"{folder}/a")
    assert store.create(f"{folder}/a", b"third")


def test_of_16_writers_exactly_one_wins(tmp_path: Path) -> None:
    uri, barrier = str(tmp_path / "run" / "a"), threading.Barrier(16)

    def write(number: int) -> bool:
        barrier.wait()
        return store.create(uri, f"writer {number}".encode() * 1_000)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(16)))
    assert won.count(True) == 1
    assert store.read(uri) == f"writer {won.index(True)}".encode() * 1_000
    assert os.listdir(tmp_path / "run") == ["a"]


@pytest.mark.parametrize(
    ("write", "failing"),
    [(store.create, "fsync"), (store.create, "link"), (store.replace, "fsync")],
)
def test_a_failed_write_leaves_nothing(
    write: object, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, full)
        with pytest.raises(OSError, match="No space left"):
            write(str(tmp_path / "a"), b"data")  # type: ignore[operator]
    assert os.listdir(tmp_path) == []
    assert store.create(str(tmp_path / "a"), b"data")


def test_a_failed_replacement_leaves_the_old_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "a")
    store.replace(uri, b"old")

    def refuse(*_args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Input/output"):
        store.replace(uri, b"new")
    assert store.read(uri) == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_the_temporary_file_of_a_writer_that_died_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".creating-abc").write_bytes(b"half an obj")
    assert list(store.list_objects(str(tmp_path))) == []


@pytest.mark.parametrize(("there", "expected"), [(True, False), (False, None)])
def test_a_lost_race_that_a_server_calls_invalid(
    there: bool, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # EINVAL is a lost race only where the object is there; else it is a real refusal
    filesystem, uri = fsspec.filesystem("memory"), f"memory://store-tests-{next(_numbers)}/a"
    if there:
        store.create(uri, b"first")

    def invalid(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(type(filesystem), "pipe_file", invalid)
    if expected is None:
        with pytest.raises(OSError, match="Invalid argument"):
            store.create(uri, b"second")
    else:
        assert store.create(uri, b"second") is expected


def test_local_addresses_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.absolute("runs/a") == str(tmp_path / "runs" / "a")
    assert store.absolute("s3://bucket/a") == "s3://bucket/a"
    assert store.is_local("runs/a")
    assert not store.is_local("memory://a")
