"""Tables that are made from a run's own and lie beside it: a sparsity analysis, a curve.

They are made anew each time. A record, written last, says what they were made from and the hash of
each: tables of two analyses, of another run, or that were edited are told from those that it names.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.errors import Damaged, Refused
from dlogp_ray.tables.encoding import encode_table
from dlogp_ray.tables.object_names import SEAL
from dlogp_ray.tables.record import HASH, record_hash, with_hash
from dlogp_ray.tables.source import source_hash
from dlogp_ray.tables.stored import StoredRun, read_info

ANALYSIS = "sparsity.json"
"""What says that a sparsity analysis is whole, in its folder ``sparsity/<name>``."""
CURVE, CURVE_RECORD = "curve.parquet", "curve.json"
"""What an intervene job writes beside its table: one row an intervention."""


def write_derived(
    run: StoredRun,
    folder: str,
    record: str,
    tables: Mapping[str, pa.Table],
    said: Mapping[str, Any],
) -> None:
    """Write tables, and last of all their record.

    Args:
        run: That they are made from.
        folder: Where they go.
        record: Name of the record there.
        tables: Name -> rows.
        said: What else the record says.
    """
    hashes = {}
    for name, table in tables.items():
        data = encode_table(table)
        hashes[name] = hashlib.sha256(data).hexdigest()
        store.replace(f"{folder}/{name}.parquet", data)
    of = {"origin": run.origin, "scores": source_hash(run) if run.sealed else None}
    info = with_hash(dict(said) | {"made_from": of, "tables": hashes})
    store.replace(f"{folder}/{record}", json.dumps(info, indent=2).encode())


def read_derived(
    run: StoredRun, folder: str, record: str, names: Collection[str], *, again: str
) -> dict[str, bytes]:
    """Tables as they were made, each a Parquet object.

    What was made before its record had hashes is taken as it is.

    Args:
        run: That they are to be of.
        folder: Where they are.
        record: Name of the record there.
        names: Of tables.
        again: How they are made again.

    Raises:
        FileNotFoundError: There is no such table, or no record.
        Damaged: They are of another run, of rows that have changed since, or others than were made.
    """
    info = json.loads(store.read(f"{folder}/{record}"))
    # One of before had none, and said the analysis's config.
    now = record_hash(info)
    said = info.get(HASH, now if "config" in info and "made_from" not in info else None)
    if said != now:
        raise Damaged(f"{folder}/{record} is not as it was written; {again}")
    if of := info.get("made_from"):
        changed = run.sealed and of["scores"] not in (None, source_hash(run))
        if of["origin"] != run.origin or changed:
            raise Damaged(f"{folder} was made from other rows than {run.uri} has; {again}")
    found = {name: store.read(f"{folder}/{name}.parquet") for name in names}
    for name, data in found.items():
        said = info.get("tables", {}).get(name)
        if said is not None and said != (sha256 := hashlib.sha256(data).hexdigest()):
            raise Damaged(
                f"{folder}/{name}.parquet was changed, or is being made: it has SHA-256 {sha256}, "
                f"and {record} says {said}; {again}"
            )
    return found


def analyses(run: StoredRun) -> dict[str, list[str]]:
    """The sparsity analyses beside a run's table: name -> names of its tables."""
    filesystem, path = store.open_store(run.path("sparsity"))
    files: dict[str, set[str]] = {}
    for name in filesystem.glob(f"{path}/*/*"):
        *_, analysis, file = name.split("/")
        files.setdefault(analysis, set()).add(file)
    return {
        analysis: sorted(n.removesuffix(".parquet") for n in names if n.endswith(".parquet"))
        for analysis, names in sorted(files.items())
        if ANALYSIS in names
    }


def analysis_tables(run: StoredRun, analysis: str, names: Collection[str]) -> dict[str, bytes]:
    """Tables of a sparsity analysis, as ``read_derived``."""
    folder = run.path(f"sparsity/{analysis}")
    again = f"`dlogp sparsity {run.uri} --name {analysis}` makes the analysis again"
    return read_derived(run, folder, ANALYSIS, names, again=again)


def figures(run: StoredRun, analysis: str) -> pa.Table:
    """The figures of a sparsity analysis, one row each.

    Raises:
        Refused: There is none of this name, or the run can have none.
        Damaged: As ``read_derived``.
    """
    if "curve" in run.kind.beside:
        raise Refused(
            f"run {run.uri} is of an intervene job and has no sparsity analysis: its figures "
            "are in the view `curve`"
        )
    try:
        data = analysis_tables(run, analysis, ["figures"])["figures"]
    except FileNotFoundError:
        command, there = f"`dlogp sparsity {run.uri} --name {analysis}`", analyses(run)
        if analysis in there:
            lacks = f"run {run.uri}: the sparsity analysis {analysis!r} has no figures.parquet"
            raise Damaged(f"{lacks} any more; {command} makes it again") from None
        names = ", ".join(map(repr, there)) or "none"
        raise Refused(
            f"run {run.uri} has no sparsity analysis {analysis!r} (those there: {names}); make it "
            f"with {command}"
        ) from None
    return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)


def weights_tables(run: StoredRun) -> dict[str, StoredRun]:
    """The sealed weights tables beside a run's table, by name."""
    filesystem, path = store.open_store(run.path("weights"))
    names = sorted(name.split("/")[-2] for name in filesystem.glob(f"{path}/*/{SEAL}"))
    uris = {name: run.path(f"weights/{name}") for name in names}
    return {name: StoredRun(uri, read_info(uri)) for name, uri in uris.items()}
