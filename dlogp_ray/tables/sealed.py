"""What a sealed run says of itself: its totals in ``_SUCCESS``, its objects in a manifest.

``_SUCCESS`` names the ``run.json`` and the manifest that it was made with, by hash, and has one of
itself: a reader takes none of them for another run's, or for what it was not.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.errors import Damaged
from dlogp_ray.tables.object_names import MANIFEST, SEAL, unit_index
from dlogp_ray.tables.record import HASH, record_hash, with_hash

_OF_MANIFEST = "manifest_sha256"
"""In ``_SUCCESS``; one that has none, nor a hash of itself, was written before they were kept."""
_BATCH = 1_000


def encode_seal(totals: Mapping[str, Any], run_sha256: str, manifest: bytes) -> bytes:
    """``_SUCCESS``.

    Args:
        totals: As ``add_up``, and what else is known of the whole.
        run_sha256: Of ``run.json``.
        manifest: The whole object.
    """
    hashes = {"run_sha256": run_sha256, _OF_MANIFEST: hashlib.sha256(manifest).hexdigest()}
    said = dict(totals) | hashes
    return json.dumps(with_hash(said), indent=2).encode()


def read_seal(uri: str, run_sha256: str) -> dict[str, Any]:
    """``_SUCCESS`` of the run at ``uri``: its totals.

    Args:
        uri: Of the run.
        run_sha256: Of ``run.json`` as it is now.

    Raises:
        Damaged: It is not what ``encode_seal`` makes, or is of another ``run.json``.
    """
    where = f"{uri}/{SEAL}"
    again = f"`dlogp verify {uri} --repair` seals the run anew"
    try:
        record = json.loads(store.read(where))
    except FileNotFoundError:
        raise Damaged(f"{where} is missing: the run was opened again; do that once more") from None
    except (OSError, ValueError) as error:
        raise Damaged(f"{where} can't be read: {error}; {again}") from None
    needed = add_up([]).keys()
    missing = needed - record.keys() if isinstance(record, dict) else needed
    if missing:
        raise Damaged(f"{where} has no {', '.join(sorted(missing))}; {again}")
    if record.get("run_sha256") != run_sha256:
        raise Damaged(
            f"{where} is of another run.json: it was sealed with SHA-256 "
            f"{record.get('run_sha256')}, and run.json has SHA-256 {run_sha256}; {again}"
        )
    now, said = record_hash(record), record.get(HASH)
    if said != now and (said is not None or _OF_MANIFEST in record):
        raise Damaged(
            f"{where} is not as it was written: its content has SHA-256 {now}, and it says "
            f"{said}; {again}"
        )
    return dict(record)


def read_manifest(uri: str, seal: Mapping[str, Any] | None) -> pa.Table:
    """Every object of the run at ``uri``, one row each.

    Args:
        uri: Of the run.
        seal: Its, as ``read_seal``; None where that can't be read, and there is nothing to compare.

    Raises:
        Damaged: It is missing, not the one that the run was sealed with, or names a unit as no run
            does.
    """
    where = f"{uri}/{MANIFEST}"
    again = f"put it back from a copy, or `dlogp verify {uri} --repair` seals the run anew"
    try:
        data = store.read(where)
    except FileNotFoundError:
        raise Damaged(f"run {uri} is sealed, and its {MANIFEST} is missing; {again}") from None
    now, said = hashlib.sha256(data).hexdigest(), (seal or {}).get(_OF_MANIFEST)
    if said is not None and said != now:
        raise Damaged(
            f"{where} is another one than the run was sealed with: it has SHA-256 {now}, and "
            f"{SEAL} says {said}; {again}"
        )
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise Damaged(f"{where} can't be read: {error}; {again}") from None
    for unit in table["unit"].to_pylist():
        if unit_index(unit or "") is None:  # it becomes part of an address
            raise Damaged(f"{where} names a unit {unit!r}: not of a run")
    if seal and said is None and (wrong := contradictions(table, seal)):
        raise Damaged(f"{where} is not the one of the seal: {'; '.join(wrong)}; {again}")
    return table


def contradictions(manifest: pa.Table, seal: Mapping[str, Any]) -> list[str]:
    """Which totals of a seal are not those of the manifest."""
    return [
        f"{SEAL} says {name} {seal.get(name)}, and the manifest {value}"
        for name, value in totals(manifest).items()
        if seal.get(name) != value
    ]


class Counted(NamedTuple):
    """What is counted of an object: tokens of its responses, and rows."""

    tokens: int
    status: Mapping[str, int]
    special_tokens: Mapping[str, int]


def add_up(objects: Iterable[Counted]) -> dict[str, Any]:
    """The totals of some objects."""
    status, special_tokens = Counter[str](), Counter[str]()
    units, tokens = 0, 0
    for counted in objects:
        status.update(counted.status)
        special_tokens.update(counted.special_tokens)
        tokens += counted.tokens
        units += 1
    return {
        "units": units,
        "rows": status.total(),
        "tokens": tokens,
        "status": dict(status),
        "duplicate_sample_ids": 0,
    } | ({"special_tokens": dict(special_tokens)} if special_tokens else {})


def totals(manifest: pa.Table) -> dict[str, Any]:
    """What a manifest's rows add up to."""
    rows = (row for batch in manifest.to_batches(max_chunksize=_BATCH) for row in batch.to_pylist())
    ids = pc.unique(manifest["duplicate_sample_ids"].combine_chunks().flatten())
    # Manifests of schema 1 have no special tokens.
    counted = add_up(
        Counted(row["tokens"], dict(row["status"]), dict(row.get("special_tokens") or ()))
        for row in rows
    )
    return counted | {"duplicate_sample_ids": len(ids)}
