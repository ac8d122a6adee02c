"""Files on a disk whose content is known: by what the disk says of them, else by their hash.

A content can't change without the file system's own clock, the ctime, moving on: whoever sets the
other times back moves that. So a file that has kept its inode and times is the one that was hashed,
and one that has not, on another machine for one, is hashed again. A name may be another file's from
one moment to the next: what is asked, hashed and read is what is open.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from dlogp_ray.store.objects import Changed, open_local

_OPEN_FILES = Path("/proc/self/fd")


class Known(NamedTuple):
    """A file when it was hashed.

    Attributes:
        sha256: Of its content (hex).
        state: Its bytes, inode, mtime and ctime (ns).
    """

    sha256: str
    state: tuple[int, int, int, int]


def know(path: PathLike[str] | str) -> Known:
    """Hash a file, at the disk's speed.

    Raises:
        Changed: It is written to meanwhile.
        OSError: It can't be read.
    """
    with open_local(path) as file:
        before = _state(file)
        known = Known(_sha256(file), before)
        if _state(file) != before:
            raise Changed(f"{path} was written to while it was read")
    return known


def seen_now(path: PathLike[str] | str, known: Known) -> Known:
    """The same content, and what this machine's disk says of the file: another's copy is known."""
    return known._replace(state=_of_status(os.stat(path)))


def is_still(path: PathLike[str] | str, known: Known) -> bool:
    """Whether a file has the content that is known."""
    try:
        with open_local(path) as file:
            return _holds(file, known)
    except OSError:  # gone, or no file any more
        return False


def not_overwritten(path: PathLike[str] | str, known: Known) -> Known | None:
    """A file whose content may not have changed in its place, as the disk tells of it now.

    Args:
        path: Its. Another file may have taken this name, or none may have it any more.
        known: What it is known to hold.

    Returns:
        None where it has another content.
    """
    try:
        with open_local(path) as file:
            now = _state(file)
            if now[1] != known.state[1]:
                return known
            return known._replace(state=now) if _holds(file, known) else None
    except OSError:
        return known


@contextmanager
def held_open(folder: Path, files: Mapping[str, Known]) -> Iterator[Path]:
    """A folder of the same name in which the files are those that are known, for what reads names.

    They are held open, and its links lead to what is open, whatever becomes of their own names.

    Args:
        folder: Theirs. What else is in it is found in the other one too.
        files: Name -> what it is known to hold.

    Raises:
        Changed: One is another one, or gone, or is written to meanwhile.
    """
    with ExitStack() as stack:
        opened, states = dict[str, BufferedReader](), dict[str, tuple[int, int, int, int]]()
        for name, known in files.items():
            try:
                opened[name] = stack.enter_context(open_local(folder / name))
            except OSError:
                raise Changed(f"{name} is gone, or no file any more") from None
            states[name] = _state(opened[name])
            if not _holds(opened[name], known):
                raise Changed(f"{name} is another one")
        aside = stack.enter_context(tempfile.TemporaryDirectory(prefix="dlogp-ray-"))
        links = Path(aside) / folder.name
        links.mkdir()
        there = {path.name: path for path in folder.absolute().iterdir()}
        if _OPEN_FILES.is_dir():
            there |= {name: _OPEN_FILES / str(file.fileno()) for name, file in opened.items()}
        for name, path in there.items():
            (links / name).symlink_to(path)
        try:
            yield links
        finally:  # what was read, or what went wrong, counts for nothing then
            for name, file in opened.items():
                if _state(file) != states[name]:
                    raise Changed(f"{name} was written to, moved or deleted while it was read")


def _holds(file: BufferedReader, known: Known) -> bool:
    now = _state(file)
    if now == tuple(known.state):
        return True
    return now[0] == known.state[0] and _sha256(file) == known.sha256


def _sha256(file: BufferedReader) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _state(file: BufferedReader) -> tuple[int, int, int, int]:
    return _of_status(os.fstat(file.fileno()))


def _of_status(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
