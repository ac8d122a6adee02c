"""Objects in a store: conditional create, read, list. Local disk and any fsspec URL.

Creating an object is atomic and happens at most once: the first writer wins, every other one is
told so, and a reader never sees half an object.
"""

import contextlib
import errno
import io
import os
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dlogp_ray.config import check_address
from dlogp_ray.errors import Refused, Unanswered, UnfitStore
from dlogp_ray.store import s3

_CONFLICTS = 8
_HOST = socket.gethostname()


def open_store(uri: str, *, read_ahead: bool = True) -> tuple[Any, str]:
    """The fsspec filesystem of ``uri`` and the path in it (absolute on a local disk).

    Args:
        uri: An address.
        read_ahead: False for whoever knows better what it will read: s3fs reads 5 MB more.
    """
    if uri.partition("://")[0] in s3.PROTOCOLS:
        from dlogp_ray.store.patient_s3 import PatientS3  # with s3fs, which takes a second

        filesystem = PatientS3(**s3.options(read_ahead=read_ahead))
        return filesystem, filesystem._strip_protocol(uri)
    return fsspec.url_to_fs(uri)  # type: ignore[no-any-return]


def is_local(uri: str) -> bool:
    """Whether ``uri`` is a path on this machine's disks."""
    return isinstance(open_store(uri)[0], LocalFileSystem)


def absolute(uri: str) -> str:
    """``uri`` in a form that means the same in every process: local paths become absolute.

    Raises:
        Refused: It names nothing, carries credentials, is of a store that is not installed, or of
            one that ends with this process.
    """
    if not isinstance(uri, str | os.PathLike):  # from Python, where nothing has looked
        raise Refused(f"expected a path or a URL, got a {type(uri).__name__}")
    try:
        uri = check_address(os.fspath(uri))
    except ValueError as error:
        raise Refused(str(error)) from None
    try:
        filesystem, path = open_store(uri)
    except (ValueError, ImportError) as error:
        raise Refused(
            f"{uri}: expected a path, or the URL of a store that is installed: {error}"
        ) from None
    if filesystem.protocol == "memory":
        raise Refused(
            f"{uri}: what is there ends with its process, and no other sees it; give a path, or "
            "the URL of a store"
        )
    return str(path) if isinstance(filesystem, LocalFileSystem) else uri.rstrip("/")


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn what a store refuses for good (credentials, rights, a bucket) into one line.

    Args:
        what: Was asked for: the start of that line.

    Raises:
        Refused: The store did so.
        Unanswered: Everything else that is said by the library that speaks to it.
    """
    try:
        yield
    except Exception as error:
        if cause := s3.refusal(error):
            raise Refused(f"{what}: {cause}") from None
        if s3.may_be_done_later(error) and not isinstance(error, Unanswered):
            raise Unanswered(f"{what}: {error}") from error
        raise


def create(uri: str, data: bytes, *, conditional: bool = True) -> bool:
    """Create the object ``uri`` with exactly ``data``, unless it exists.

    On a local disk a temporary file is written, flushed and hard-linked to its name; elsewhere
    the store's own conditional put is used (``If-None-Match: *``), in one request.

    Args:
        uri: Where.
        data: The whole object.
        conditional: False for a store that can't do that: the object is looked for first, and
            of two writers at once either may win.

    Returns:
        True if this call created the object, False if it was there. A store's answer can get lost
        on the way: then False too, of the call's own object.

    Raises:
        Refused: The store gives no access, or has no such bucket.
        OSError: The store refused for another reason; nothing was created.
    """
    filesystem, path = open_store(uri)
    if isinstance(filesystem, LocalFileSystem):
        return _create_local(Path(path), data)
    with refusals(uri):
        if not conditional:
            if filesystem.exists(path):
                return False
            _put(filesystem, path, data, "overwrite")
            return True
        try:
            _put(filesystem, path, data, "create")
        except FileExistsError:
            return False
        except OSError as error:
            # Some S3-compatible servers answer a lost race with EINVAL, or without its code.
            if error.errno == errno.EINVAL and filesystem.exists(path):
                return False
            raise
    return True


def _put(filesystem: Any, path: str, data: bytes, mode: str) -> None:
    whole = {"chunksize": s3.ONE_REQUEST_BYTES} if s3.speaks(filesystem) else {}
    for attempt in range(_CONFLICTS):
        try:
            filesystem.pipe_file(path, data, mode=mode, **whole)
        except OSError as error:
            # Another write of the same key is under way (Amazon S3).
            if s3.status(error) != 409 or attempt == _CONFLICTS - 1:
                raise
            time.sleep(0.1 * 2**attempt)
        else:
            return


def _create_local(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        return False
    try:
        with _temporary(path, data) as temporary:
            os.link(temporary, path)
    except FileExistsError:
        if path.is_file():
            return False
        what = "a folder, a pipe or a link to nothing has its name; move that away"
        raise OSError(errno.EEXIST, what, str(path)) from None
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


def check_writable(uri: str, *, conditional: bool = True) -> None:
    """Check that objects can be created under ``uri``, and only once; nothing is left behind.

    Args:
        uri: A folder, which need not be there.
        conditional: As ``create`` will be called.

    Raises:
        Refused: They can't be created.
        UnfitStore: A second create of the same key was not refused.
    """
    if is_local(uri):
        _check_writable_local(Path(open_store(uri)[1]), uri)
        return
    probe = f"{uri}/.probe-{uuid.uuid4().hex}"
    made = False
    try:
        made = create(probe, b"first", conditional=conditional)
        twice = create(probe, b"second", conditional=conditional)
        if twice or read(probe) != b"first":
            raise UnfitStore(
                f"{uri}: this store does not create objects conditionally: a second create of one "
                "key was not refused, so that two writers could undo each other's work. Use "
                "another store (`dlogp doctor` tests one); or, where one job at a time writes "
                "there, say single_writer: true"
            )
    except (OSError, ValueError, NotImplementedError) as error:
        raise Refused(
            f"{uri}: nothing can be written there ({error}); check the address, and what the "
            "credentials in the environment allow"
        ) from None
    finally:
        if made:  # else a server that does not answer would be waited for again
            with contextlib.suppress(Exception):  # what went wrong above is what is told
                delete(probe)


def _check_writable_local(folder: Path, uri: str) -> None:
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
        file = next((one for one in (folder, *folder.parents) if one.is_file()), None)
        cause = f"{file} is a file" if file else error.strerror
        raise Refused(
            f"{uri}: nothing can be written there ({cause}); give a folder where it can"
        ) from None


def replace(uri: str, data: bytes) -> None:
    """Write ``uri`` whole, over what was there: only for records whose last writer is right."""
    filesystem, path = open_store(uri)
    if isinstance(filesystem, LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with _temporary(Path(path), data) as temporary:
            os.replace(temporary, path)
    else:
        with refusals(uri):
            _put(filesystem, path, data, "overwrite")


def read(uri: str) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: There is no such object.
    """
    filesystem, path = open_store(uri)
    if isinstance(filesystem, LocalFileSystem):
        with open_local(path) as file:
            return file.read()
    with refusals(uri):
        return bytes(filesystem.cat_file(path))


def open_local(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A file of this machine's disks, to be read.

    Raises:
        FileNotFoundError: There is none.
        OSError: It is no file: a pipe would be waited for until somebody writes.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "expected a file, got a pipe, a socket or a device", str(path))


def read_range(uri: str, start: int, stop: int) -> bytes:
    """The object's bytes from ``start`` up to ``stop``; fewer where it ends before.

    Raises:
        FileNotFoundError: There is no such object.
    """
    filesystem, path = open_store(uri)
    if isinstance(filesystem, LocalFileSystem):
        with open_local(path) as file:
            file.seek(start)
            return file.read(stop - start)
    with refusals(uri):
        return bytes(filesystem.cat_file(path, start=start, end=stop))


def move(uri: str, to: str) -> bool:
    """Copy an object to another address and delete it then; nothing is done if that is taken.

    Returns:
        Whether it was moved.

    Raises:
        FileNotFoundError: There is no such object.
    """
    data = read(uri)
    # A create whose answer was lost says False, and its own bytes are there.
    if not create(to, data) and read(to) != data:
        return False
    delete(uri)
    return True


def exists(uri: str) -> bool:
    """Whether the object is there."""
    filesystem, path = open_store(uri)
    with refusals(uri):
        return bool(filesystem.exists(path))


def delete(uri: str) -> None:
    """Remove the object if it is there."""
    filesystem, path = open_store(uri)
    with refusals(uri), contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(path)


class Entry(NamedTuple):
    """What a store's listing says of an object.

    Attributes:
        size: Bytes.
        etag: Tells one version from another; on a disk, the time of the last change in ns.
        state: Of a file on a disk, the machine that looked at it and its ctime (ns), which nobody
            can set back. Not kept: a file that is moved and put back has another.
    """

    size: int
    etag: str
    state: str = ""

    def differs(self, now: "Entry") -> bool:
        """Whether what is there now is another version."""
        same = self.size == now.size and same_etag(self.etag, now.etag)
        # Where each machine has its own copy, with its time, ctimes differ and say nothing.
        comparable = _machine(self.state) == _machine(now.state) != ""
        return not same or (comparable and self.state != now.state)


def _machine(state: str) -> str:
    return state.rpartition("@")[2]


class Changed(Exception):
    """An object is not the version that was named; the text names it and says what differs."""


def entry(uri: str) -> Entry:
    """What the store says of an object now.

    Raises:
        FileNotFoundError: There is no such object.
    """
    filesystem, path = open_store(uri)
    with refusals(uri):
        return entry_of(filesystem, filesystem.info(path))


def entry_of(filesystem: Any, info: Mapping[str, Any]) -> Entry:
    """The same, of what fsspec has listed."""
    if isinstance(filesystem, LocalFileSystem):
        return _entry_of_status(os.stat(info["name"]))  # fsspec's times are floats
    return Entry(int(info["size"]), _etag(info))


def _entry_of_status(status: os.stat_result) -> Entry:
    state = f"{status.st_ctime_ns}@{_HOST}"
    return Entry(status.st_size, str(status.st_mtime_ns), state)


def same_etag(recorded: str, found: str) -> bool:
    """Whether two name one version.

    Before schema 3, a file's on a disk was its time in seconds.
    """
    if recorded == found or "." not in recorded or not found.isdecimal():
        return recorded == found
    seconds, nanoseconds = divmod(int(found), 10**9)
    return recorded == str(seconds + 1e-9 * nanoseconds)


@contextlib.contextmanager
def opened(uri: str, expected: Entry | None = None, *, read_ahead: bool = True) -> Iterator[Any]:
    """An object that is read in the context, of the version that was named, before and after.

    Args:
        uri: Its address.
        expected: That version; None where none was named.
        read_ahead: As ``open_store``.

    Raises:
        Changed: It is another one, or gone. What was read of it counts for nothing then, and so
            does an error that it came to.
        FileNotFoundError: There is no such object, and no version was named.
    """
    filesystem, path = open_store(uri, read_ahead=read_ahead)
    local = isinstance(filesystem, LocalFileSystem)
    try:
        file = open_local(path) if local else filesystem.open(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        if expected is None:
            raise
        raise Changed(f"{uri} is gone") from None
    except OSError as error:
        if expected is None or not local or Path(path).is_file():
            raise
        raise Changed(f"{uri} is no file now ({error.strerror})") from None
    with file:
        if expected is None:
            yield file
            return

        def check(info: Mapping[str, Any] | None) -> None:
            # Of a file on a disk, what is open: that its name is another's by now does no harm.
            if local:
                now = _entry_of_status(os.fstat(file.fileno()))
            else:
                now = entry_of(filesystem, info or filesystem.info(path))
            if not expected.differs(now):
                return
            if (now.size, now.etag) == (expected.size, expected.etag):
                raise Changed(f"{uri} was written to, or moved, and its time was set back")
            raise Changed(
                f"{uri} has {now.size:,} bytes and version {now.etag} now, and had "
                f"{expected.size:,} and {expected.etag}"
            )

        check(getattr(file, "details", None))
        try:
            yield file
        except Exception:
            check(None)
            raise
        check(None)


def list_objects(uri: str) -> Iterator[tuple[str, Entry]]:
    """The objects directly under the folder ``uri``, as the listing comes, in any order.

    There are none where there is no folder. Names that begin with a dot are temporary files and
    left out.

    Raises:
        Refused: The store gives no access, or has no such bucket.
    """
    filesystem, path = open_store(uri)
    with refusals(uri):
        if isinstance(filesystem, LocalFileSystem):
            listing = _list_local(path)
        elif s3.speaks(filesystem):
            listing = s3.list_objects(filesystem, path)
        else:
            listing = _list_folder(filesystem, path)
        for key, size, version in listing:
            name = key.rpartition("/")[2]
            if name and not name.startswith("."):
                yield name, Entry(size, version)


def _list_local(path: str) -> Iterator[tuple[str, int, str]]:
    """One at a time: fsspec holds a dictionary of each, 1 GB of a million."""
    with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another writer's temporary file
                if entry.is_file():
                    listed = _entry_of_status(entry.stat())
                    yield entry.name, listed.size, listed.etag


def _list_folder(filesystem: Any, path: str) -> Iterator[tuple[str, int, str]]:
    try:
        filesystem.invalidate_cache(path)
        entries = filesystem.ls(path, detail=True)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry["type"] == "file":
            yield entry["name"], int(entry["size"]), _etag(entry)


def _etag(info: Mapping[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "created", "LastModified", "mtime"):
        if info.get(key) is not None and not (key == "created" and "mtime" in info):
            return str(info[key]).strip('"')
    return ""


def asked_now_and_then(uri: str) -> contextlib.AbstractContextManager[None]:
    """Within it, an S3 that other processes work with is asked here too, and its silence is said.

    Args:
        uri: An object there.
    """
    if uri.partition("://")[0] not in s3.PROTOCOLS:
        return contextlib.nullcontext()
    return s3.asked_now_and_then(lambda: exists(uri))
