"""Files on a disk whose content is known: by what the disk says of them, else by their hash.

A content can't change without the file system's own clock, the ctime, moving on: whoever sets the
other times back moves that. So a file that has kept its inode and times is the one that was hashed,
and one that has not, on another machine for one, is hashed again.
"""

import hashlib
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from dlogp_ray.store.objects import Changed


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
    before = _state(path)
    with open(path, "rb") as file:
        found = Known(hashlib.file_digest(file, "sha256").hexdigest(), before)
    if _state(path) != before:
        raise Changed(f"{path} was written to while it was read")
    return found


def seen_now(path: PathLike[str] | str, known: Known) -> Known:
    """The same content, and what this machine's disk says of the file: another's copy is known."""
    return known._replace(state=_state(path))


def is_still(path: PathLike[str] | str, known: Known, *, unless_replaced: bool = False) -> bool:
    """Whether a file has the content that is known.

    Args:
        path: Its.
        known: What that is.
        unless_replaced: Let it pass where another file has taken its name.
    """
    try:
        now = _state(path)
        if unless_replaced and now[1] != known.state[1]:
            return True
        if now == tuple(known.state):
            return True
        return now[0] == known.state[0] and know(path).sha256 == known.sha256
    except (FileNotFoundError, NotADirectoryError):
        return unless_replaced


def _state(path: PathLike[str] | str) -> tuple[int, int, int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
