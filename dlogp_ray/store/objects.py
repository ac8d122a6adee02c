"""Objects in a store: conditional create, read, list. Local disk and any fsspec URL.

Creating an object is atomic and happens at most once: the first writer wins, every other one is
told so, and a reader never sees half an object.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dlogp_ray.errors import Refused


def open_store(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of ``uri`` and the path in it (absolute on a local disk)."""
    return fsspec.url_to_fs(uri)  # type: ignore[no-any-return]


def is_local(uri: str) -> bool:
    """Whether ``uri`` is a path on this machine's disks."""
    return isinstance(open_store(uri)[0], LocalFileSystem)


def absolute(uri: str) -> str:
    """``uri`` in a form that means the same in every process: local paths become absolute."""
    filesystem, path = open_store(uri)
    return str(path) if isinstance(filesystem, LocalFileSystem) else uri


def create(uri: str, data: bytes) -> bool:
    """Create the object ``uri`` with exactly ``data``, unless it exists.

    On a local disk a temporary file is written, flushed and hard-linked to its name; elsewhere
    the store's own conditional put is used (``If-None-Match: *``).

    Returns:
        True if this call created the object, False if it was there.

    Raises:
        OSError: The store refused for another reason; nothing was created.
    """
    filesystem, path = open_store(uri)
    if isinstance(filesystem, LocalFileSystem):
        return _create_local(Path(path), data)
    try:
        filesystem.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        # Some S3-compatible servers answer a lost race with EINVAL.
        if error.errno == errno.EINVAL and filesystem.exists(path):
            return False
        raise
    return True


def _create_local(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return False
    try:
        with _temporary(path, data) as temporary:
            os.link(temporary, path)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[str]:
    """A file beside ``path`` that holds ``data``; it is gone afterwards, whatever happened."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".creating-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)


def check_writable(uri: str) -> None:
    """Check that objects can be created under ``uri`` on a local disk; nothing is left behind.

    Raises:
        Refused: They can't.
    """
    filesystem, path = open_store(uri)
    if not isinstance(filesystem, LocalFileSystem):
        return
    folder = Path(path)
    try:
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        finally:
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()
    except OSError as error:
        raise Refused(
            f"{uri}: nothing can be written there ({error}); give a folder that can"
        ) from None


def replace(uri: str, data: bytes) -> None:
    """Write ``uri`` whole, over what was there: only for records whose last writer is right."""
    filesystem, path = open_store(uri)
    if isinstance(filesystem, LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with _temporary(Path(path), data) as temporary:
            os.replace(temporary, path)
    else:
        filesystem.pipe_file(path, data)


def read(uri: str) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: There is no such object.
    """
    filesystem, path = open_store(uri)
    return bytes(filesystem.cat_file(path))


def exists(uri: str) -> bool:
    """Whether the object is there."""
    filesystem, path = open_store(uri)
    return bool(filesystem.exists(path))


def delete(uri: str) -> None:
    """Remove the object if it is there."""
    filesystem, path = open_store(uri)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(path)


def list_objects(uri: str) -> dict[str, dict[str, Any]]:
    """The objects directly under the folder ``uri``: name -> what the store knows of it."""
    filesystem, path = open_store(uri)
    try:
        filesystem.invalidate_cache(path)
        entries = filesystem.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {
        name: entry
        for entry in entries
        if entry["type"] == "file" and not (name := Path(entry["name"]).name).startswith(".")
    }


def etag(entry: dict[str, Any]) -> str:
    """What tells one version of an object from another: the store's etag, on disks the mtime."""
    for key in ("ETag", "etag", "md5Hash", "created", "LastModified", "mtime"):
        if entry.get(key) is not None and not (key == "created" and "mtime" in entry):
            return str(entry[key]).strip('"')
    return ""
