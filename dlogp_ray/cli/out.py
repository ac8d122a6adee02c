"""The file of ``--out``: whole or not there, and none is replaced without a word."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dlogp_ray.errors import Refused


def check_new(path: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file, before any work is done.

    Raises:
        Refused: It is there.
    """
    if path.is_file() and not overwrite:
        raise Refused(f"--out {path}: it is there already; give another name, or --overwrite")


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file that has its name when all is in it.

    Raises:
        Refused: It can't be written.
    """
    named_at_last = not path.exists() or path.is_file()  # a pipe or a device is written as it is
    part = path.with_name(f"{path.name}.part") if named_at_last else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as sink:
            yield sink
        if named_at_last:
            part.replace(path)
    except OSError as error:
        raise Refused(f"--out {path}: {error.strerror}; give a file that can be written") from None
    finally:
        if named_at_last:
            with suppress(OSError):
                part.unlink()
