"""A file whose content is known: what is open is hashed and read, whatever its name does."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dlogp_ray import store


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of one size and times."""
    for name, content in (("a", b"a" * 4096), ("b", b"b" * 4096)):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, ns=(1, 1))
    return tmp_path / "a", tmp_path / "b"


@contextmanager
def flipping(name: Path, *files: Path) -> Iterator[None]:
    """``name`` is a link to each of the files in turn, all the time."""
    over = threading.Event()

    def flip() -> None:
        while not over.is_set():
            for file in files:
                link(name, file)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def link(name: Path, file: Path) -> None:
    aside = name.with_name(f"{name.name}.aside")
    aside.symlink_to(file)
    os.replace(aside, name)


def test_a_hash_is_of_the_file_whose_state_is_told(two: tuple[Path, Path], tmp_path: Path) -> None:
    expected = {p.stat().st_ino: hashlib.sha256(p.read_bytes()).hexdigest() for p in two}
    name = tmp_path / "name"
    link(name, two[0])
    with flipping(name, *two):
        found = [store.know(name) for _ in range(3_000)]
    assert all(one.sha256 == expected[one.state[1]] for one in found)
    assert {one.state[1] for one in found} == expected.keys()  # else nothing was tried


@pytest.mark.parametrize("relative", [False, True])
def test_what_is_held_open_is_read_though_its_name_is_anothers(
    relative: bool, two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("folder") if relative else tmp_path / "folder"
    folder.mkdir()
    link(folder / "weights", two[0])
    (folder / "other").write_bytes(b"not known")
    known = {"weights": store.know(two[0])}
    with store.held_open(folder, known) as held:
        link(folder / "weights", two[1])
        assert (held / "weights").read_bytes() == two[0].read_bytes()
        assert (held / "other").read_bytes() == b"not known"
        assert held.name == folder.name
    assert not held.exists()
    with (
        pytest.raises(store.Changed, match="weights is another one"),
        store.held_open(folder, known),
    ):
        pytest.fail("not what is known")


def written(path: Path) -> None:
    """In its place and back, with its times."""
    before = path.read_bytes()
    path.write_bytes(bytes(len(before)))
    path.write_bytes(before)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("what", [written, Path.unlink])
def test_a_file_that_is_touched_while_it_is_held_open_is_no_more_the_one_that_is_known(
    what: Callable[[Path], None], two: tuple[Path, Path], tmp_path: Path
) -> None:
    known = {"a": store.know(two[0])}
    with (
        pytest.raises(store.Changed, match="a was written to, moved or deleted"),
        store.held_open(tmp_path, known),
    ):
        what(two[0])


def fail_over(path: Path) -> None:
    written(path)
    raise ValueError("what it came to")


def test_an_error_over_a_file_that_was_touched_is_told_as_the_change(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    known = {"a": store.know(two[0])}
    with (
        pytest.raises(store.Changed, match="a was written to"),
        store.held_open(tmp_path, known),
    ):
        fail_over(two[0])


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    known, version = store.know(file), store.entry(str(file))
    file.unlink()
    os.mkfifo(file)
    assert not store.is_still(file, known)
    with pytest.raises(OSError, match="got a pipe"):
        store.read(str(file))
    with pytest.raises(OSError, match="got a pipe"):
        store.know(file)
    with (
        pytest.raises(store.Changed, match="is no file now"),
        store.opened(str(file), version),
    ):
        pytest.fail("it is a pipe")
