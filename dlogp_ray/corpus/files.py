"""The corpus as a list of files, each with its size and version, in an order that never changes."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from dlogp_ray import store
from dlogp_ray.errors import Refused

_RECORD = "run.json"
FileFormat = Literal["parquet", "jsonl", "torch"]

_FORMATS: dict[str, FileFormat] = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_BY_NAME: dict[str, FileFormat] = {".pt": "torch"}
"""Only where they are asked for: what else a folder has of these is mostly weights."""
_PICKLES = (".dp", ".pkl", ".pickle")
_WILDCARDS = "*?["
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}


@dataclass(frozen=True)
class CorpusFile:
    """One file of the corpus.

    Attributes:
        uri: Absolute path or URL.
        format: How it is read.
        compression: Of the whole file, as Arrow names it, or None.
        size_bytes: As stored.
        version: The store's etag, or on a disk the time of the last change in ns.
        state: As ``store.Entry``, for this call alone.
        source: Number of the corpus entry that names it.
    """

    uri: str
    format: FileFormat
    compression: str | None
    size_bytes: int
    version: str
    state: str = ""
    source: int = 0

    @property
    def entry(self) -> store.Entry:
        """The version that is to be read."""
        return store.Entry(self.size_bytes, self.version, self.state)


def list_corpus(patterns: Sequence[str], what: str = "corpus") -> list[CorpusFile]:
    """All files that the patterns name, sorted by address within each pattern.

    A folder stands for every JSONL and Parquet file below it, except files and folders whose
    names begin with ``_`` or ``.``; other files in it are left alone.

    Args:
        patterns: Files, folders or globs.
        what: They are, for errors.

    Raises:
        Refused: A pattern names nothing, or a named file is of another kind.
    """
    files: dict[str, CorpusFile] = {}
    for pattern in patterns:
        matching = _list_pattern(pattern, what)
        if not matching and any(character in pattern for character in _WILDCARDS):
            raise Refused(f"{what} {pattern}: there is no JSONL or Parquet file that it matches")
        if not matching:
            raise Refused(
                f"{what} {pattern}: there is no JSONL or Parquet file there; expected a file, a "
                "folder or a glob"
            )
        files |= {file.uri: file for file in matching}
    return list(files.values())


def _list_pattern(pattern: str, what: str) -> list[CorpusFile]:
    is_glob = False
    try:
        filesystem, path = store.open_store(pattern)
        with store.refusals(f"{what} {pattern}"):
            # First of all, for the name of a file may hold [ or ?.
            if filesystem.isfile(path):
                entries = {path: filesystem.info(path)}
                if path.endswith(_PICKLES):
                    raise Refused(
                        f"{what} {pattern}: a pickle, and reading it runs code. Of verl set "
                        "trainer.rollout_data_dir, of SkyRL dump evaluations; or write what it "
                        "holds as JSON lines (prompt_ids, response_ids, response_mask) where you "
                        "trust it"
                    )
                if _format(path, by_name=True)[0] is None:
                    raise Refused(
                        f"{what} {pattern}: expected a name ending in {', '.join(_FORMATS)} (or "
                        f"one of these and {', '.join(_COMPRESSIONS)}), got "
                        f"{PurePosixPath(path).name}"
                    )
            elif any(character in path for character in _WILDCARDS):
                is_glob = True
                entries = filesystem.glob(path, detail=True)
            else:
                entries = filesystem.find(path, detail=True)
                if f"{path.rstrip('/')}/{_RECORD}" in entries:
                    raise Refused(
                        f"{what} {pattern}: it is a run of dlogp_ray's; give what that was made "
                        "from, or, of an intervene job, its answers: the folder generations/ in it"
                    )
    except (OSError, ImportError, ValueError) as error:
        raise Refused(f"{what} {pattern}: the store refused the listing: {error}") from None
    files = []
    for name, entry in sorted(entries.items()):
        kind, compression = _format(name, by_name=pattern.endswith(tuple(_BY_NAME)))
        # What the pattern itself spells out is wanted, whatever it is called.
        relative = PurePosixPath(PurePosixPath(name).name if is_glob else name.removeprefix(path))
        hidden = any(part.startswith(("_", ".")) for part in relative.parts)
        if entry["type"] != "file" or kind is None or hidden:
            continue
        if store.is_local(pattern):
            uri = posixpath.normpath(name)
        else:
            uri = str(filesystem.unstrip_protocol(name))
        files.append(CorpusFile(uri, kind, compression, *store.entry_of(filesystem, entry)))
    return files


def _format(name: str, *, by_name: bool) -> tuple[FileFormat | None, str | None]:
    path = PurePosixPath(name)
    if by_name and path.suffix in _BY_NAME:
        return _BY_NAME[path.suffix], None
    compression = _COMPRESSIONS.get(path.suffix)
    if compression:
        kind = _FORMATS.get(path.with_suffix("").suffix)
        return (kind, compression) if kind == "jsonl" else (None, None)
    return _FORMATS.get(path.suffix), None
