"""One value a token of a table, on this machine, as flat arrays that are memory-mapped.

    ids.i4  values.f4    tokens of all rows, one after another
    offsets.i8           [rows + 1] where each row's tokens begin
    hashes.u8  rows.i8   hashes of the sample ids in ascending order, and the row of each
    names.u1  ends.i8    the sample ids, and [rows + 1] where each begins
    prompts.u1           the hash of each row's prompt, 16 bytes

Parquet has to be decoded a million rows at a time; of these, a lookup touches a page or two. The
folder's name is the content of the table: a table that has changed is another folder. It is
written aside and renamed, so that several processes may do so at once.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlogp_ray import store
from dlogp_ray.errors import Damaged, Refused
from dlogp_ray.status import Status
from dlogp_ray.tables.objects import TableObject, open_object
from dlogp_ray.tables.run import Run
from dlogp_ray.tables.token_hash import token_hash

ARRAYS: dict[str, np.dtype[Any]] = {
    "ids": np.dtype("<i4"),
    "values": np.dtype("<f4"),
    "offsets": np.dtype("<i8"),
    "hashes": np.dtype("<u8"),
    "rows": np.dtype("<i8"),
    "names": np.dtype("u1"),
    "ends": np.dtype("<i8"),
    "prompts": np.dtype("u1"),
}
_ROWS = 1_000
"""Rows in memory at once while the arrays are written."""
_COLUMNS = ["sample_id", "policy", "status", "token_hash", "prompt_hash", "response_ids"]


def default_folder() -> Path:
    """Where such folders are, unless a caller says: ``DLOGP_CACHE`` or ``~/.cache/dlogp_ray``."""
    return Path(os.environ.get("DLOGP_CACHE", "~/.cache/dlogp_ray")).expanduser() / "tokens"


def name_hash(sample_id: bytes) -> int:
    """64 bits of a sample id; two that share them are told apart by the ids themselves."""
    return int.from_bytes(hashlib.blake2b(sample_id, digest_size=8).digest(), "little")


def cached(table: Run, policy: str, column: str, content: str, cache: Path) -> Path:
    """The folder with the arrays of a sealed table, written if it is not there.

    Args:
        table: A weights table, or scores.
        policy: Whose rows.
        column: Which lists.
        content: What is in the table: a hash.
        cache: Where such folders are.

    Raises:
        Damaged: An object is missing, is not the table's or can't be read, or a row is not what its
            hash says.
        Refused: A sample id occurs twice, or there is no room.
    """
    folder = cache / hashlib.sha256(f"{content} {policy} {column}".encode()).hexdigest()[:32]
    if _whole(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache))
    except OSError as error:
        raise Refused(
            f"{cache}: {error.strerror}; weights are kept there, set DLOGP_CACHE to another folder"
        ) from None
    try:
        _write(table, table.objects(closely=True), policy, column, aside)
        try:
            aside.rename(folder)
        except OSError:
            if not _whole(folder):  # else another process was faster
                shutil.rmtree(folder, ignore_errors=True)  # what a cleaner or a crash has left
                aside.rename(folder)
    except OSError as error:
        raise Refused(
            f"{aside}: {error.strerror}; set DLOGP_CACHE to a folder with room for 8 bytes a token"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _write(
    table: Run, objects: Sequence[TableObject], policy: str, column: str, folder: Path
) -> None:
    files = {name: (folder / f"{name}.{_ending(name)}").open("wb") for name in ARRAYS}
    offset = end = rows = 0
    hashes = []
    try:
        _append(files["offsets"], [0], "offsets")
        _append(files["ends"], [0], "ends")
        for batch in _batches(table, objects, policy, column):
            lengths = pa.compute.list_value_length(batch["response_ids"]).to_numpy()
            offsets = offset + np.cumsum(lengths, dtype=np.int64)
            names = [str(name).encode() for name in batch["sample_id"].to_pylist()]
            ends = end + np.cumsum([len(name) for name in names], dtype=np.int64)
            _append(files["offsets"], offsets, "offsets")
            _append(files["ids"], batch["response_ids"].flatten(), "ids")
            _append(files["values"], batch[column].flatten(), "values")
            files["prompts"].write(bytes.fromhex("".join(batch["prompt_hash"].to_pylist())))
            _append(files["ends"], ends, "ends")
            files["names"].write(b"".join(names))
            hashes.append(np.array([name_hash(name) for name in names], dtype=ARRAYS["hashes"]))
            offset, end, rows = int(offsets[-1]), int(ends[-1]), rows + len(names)
        whole = np.concatenate([np.zeros(0, ARRAYS["hashes"]), *hashes])
        order = np.argsort(whole, kind="stable")
        _append(files["hashes"], whole[order], "hashes")
        _append(files["rows"], order, "rows")
    finally:
        for file in files.values():
            file.close()
    _check_unique(table, folder)
    files_there = {path.name: store.know(path) for path in folder.iterdir()}
    about = {"rows": rows, "tokens": offset, "files": files_there}
    (folder / "table.json").write_text(json.dumps(about))


def _whole(folder: Path) -> bool:
    """Whether all arrays are there, as they were written."""
    try:
        files = json.loads((folder / "table.json").read_text())["files"]
        return all(store.is_still(folder / n, store.Known(*known)) for n, known in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _append(file: Any, values: Any, name: str) -> None:
    file.write(np.ascontiguousarray(values, dtype=ARRAYS[name]).tobytes())


def _ending(name: str) -> str:
    return ARRAYS[name].str.lstrip("<|")


def _batches(
    table: Run, objects: Sequence[TableObject], policy: str, column: str
) -> Iterator[pa.RecordBatch]:
    """The policy's rows that have values, checked, some at a time."""
    for part in objects:
        with open_object(part) as file:
            for batch in file.iter_batches(_ROWS, columns=[*_COLUMNS, column]):
                wanted = pa.compute.and_(
                    pa.compute.equal(batch["status"], Status.OK),
                    pa.compute.equal(batch["policy"], policy),
                )
                rows = batch.filter(wanted)
                if not len(rows):
                    continue
                for name, ids, expected in zip(
                    rows["sample_id"].to_pylist(),
                    rows["response_ids"],
                    rows["token_hash"].to_pylist(),
                    strict=True,
                ):
                    if token_hash(ids.values.to_numpy()) != expected:
                        raise Damaged(
                            f"{part.uri}: the tokens of sample {name} don't have the hash of its "
                            f"row; `dlogp verify {table.uri}` tells what else is damaged"
                        )
                yield rows


def _check_unique(table: Run, folder: Path) -> None:
    """Refuse sample ids that occur twice: which row would be meant?"""
    hashes, rows = mapped(folder, "hashes"), mapped(folder, "rows")
    equal = np.flatnonzero(hashes[1:] == hashes[:-1])
    twice = sorted(
        {
            name
            for at in equal
            if (name := sample_name(folder, int(rows[at])))
            == sample_name(folder, int(rows[at + 1]))
        }
    )
    if twice:
        raise Refused(
            f"{table.uri}: {len(twice)} sample ids occur twice, first "
            f"{', '.join(twice[:5])}; give each sample one id and score again"
        )


def mapped(folder: Path, name: str) -> Any:
    """One of the arrays; nothing is read before it is looked at."""
    path = folder / f"{name}.{_ending(name)}"
    if not path.stat().st_size:  # there is nothing to map
        return np.zeros(0, ARRAYS[name])
    # As a plain array: each look at a part of a memmap takes microseconds.
    return np.asarray(np.memmap(path, dtype=ARRAYS[name], mode="r"))


def sample_name(folder: Path, row: int) -> str:
    """The sample id of a row."""
    ends = mapped(folder, "ends")
    return bytes(mapped(folder, "names")[ends[row] : ends[row + 1]]).decode()
