"""The end of a run: a manifest of its objects, and the marker that says it is complete."""

import itertools
import json
from collections.abc import Iterator
from typing import TypeVar

import pyarrow as pa

from dlogp_ray import store
from dlogp_ray.errors import Refused
from dlogp_ray.tables.committed import Committed
from dlogp_ray.tables.encoding import encode_table
from dlogp_ray.tables.object_names import MANIFEST, SEAL
from dlogp_ray.tables.sample_ids import sample_ids
from dlogp_ray.tables.sealed import encode_seal, totals
from dlogp_ray.tables.stored import StoredRun

_BATCH = 1_000
AnyRun = TypeVar("AnyRun", bound=StoredRun)

_SCHEMA = pa.schema(
    {
        "unit": pa.string(),
        "rows": pa.int64(),
        "tokens": pa.int64(),
        "status": pa.map_(pa.string(), pa.int64()),
        "special_tokens": pa.map_(pa.string(), pa.int64()),
        "size_bytes": pa.int64(),
        "etag": pa.string(),
        "content_hash": pa.string(),
        "footer_hash": pa.string(),
        "duplicate_sample_ids": pa.list_(pa.string()),
    }
)


def seal(run: AnyRun, *, partial: bool = False) -> AnyRun:
    """Write ``manifest.parquet`` and ``_SUCCESS``, unless they are there.

    Args:
        run: A run whose units are done.
        partial: Seal although units are missing.

    Raises:
        Refused: Units are missing and ``partial`` is not set.
        Damaged: An object, or a record that the run began with, is not the run's; or what it was
            sealed with is not what there is.
    """
    if run.sealed:
        run.manifest()  # which may be another one, or the seal another run's
        return run
    for name in run.hashes:
        run.beginning(name)
    committed = run.committed()
    missing = run.planned - len(committed)
    if missing and not partial:
        raise Refused(f"run {run.uri}: {missing} of {run.planned} units are missing")
    table = pa.Table.from_batches(_rows(run, committed), schema=_SCHEMA)
    if len(committed) > 1:
        duplicates = duplicate_sample_ids(run, committed)
        column = _SCHEMA.get_field_index("duplicate_sample_ids")
        ids = [duplicates.get(unit, []) for unit in table["unit"].to_pylist()]
        values = pa.array(ids, _SCHEMA.field(column).type)
        table = table.set_column(column, _SCHEMA.field(column), values)
    success = totals(table) | {"units_missing": missing}
    aside = (name for name, _ in store.list_objects(run.path("quarantine")))
    success["version"] = 1 + sum(name.startswith("manifest-") for name in aside)
    metadata = {"dlogp_ray.version": json.dumps(success["version"])}
    if run.noise:
        success["noise"] = run.noise.model_dump()
        metadata["dlogp_ray.noise"] = json.dumps(success["noise"])
    manifest = encode_table(table.replace_schema_metadata(metadata))
    # Without its marker, a manifest is left from a seal that died, and the run may have gone on.
    store.replace(run.path(MANIFEST), manifest)
    data = encode_seal(success, run.record_hash(), manifest)
    if not store.create(run.path(SEAL), data, conditional=run.conditional):
        run.manifest()  # another call has sealed it meanwhile, with the same
    return run


def _rows(run: StoredRun, committed: Committed) -> Iterator[pa.RecordBatch]:
    """The manifest's rows without their duplicates, some at a time."""
    rows = (
        {
            "unit": unit,
            "rows": sum(said.status.values()),
            "tokens": said.tokens,
            "status": list(said.status.items()),
            "special_tokens": list(said.special_tokens.items()),
            "size_bytes": entry.size,
            "etag": entry.etag,
            "content_hash": said.content_hash,
            "footer_hash": sha256,
            "duplicate_sample_ids": [],
        }
        for (unit, (said, sha256)), entry in zip(
            run.footers(committed), committed.values(), strict=True
        )
    )
    while batch := list(itertools.islice(rows, _BATCH)):
        yield pa.RecordBatch.from_pylist(batch, schema=_SCHEMA)


def unseal(run: StoredRun) -> None:
    """Open a sealed run again; its manifest is put aside, and the next seal counts on from it."""
    store.delete(run.path(SEAL))
    if store.exists(run.path(MANIFEST)):
        quarantine(run, MANIFEST)


def quarantine(run: StoredRun, name: str) -> str:
    """Move an object of the run to ``quarantine/``, under its name and the first free number.

    Returns:
        Its new name.
    """
    stem, _, ending = name.rpartition("/")[2].partition(".")
    for number in itertools.count(1):
        aside = f"quarantine/{stem}-{number}.{ending}"
        if store.move(run.path(name), run.path(aside)):
            return aside
    raise AssertionError("numbers do not end")


def duplicate_sample_ids(run: StoredRun, committed: Committed) -> dict[str, list[str]]:
    """Sample ids that stand in more than one unit: unit -> its such ids, sorted."""
    with sample_ids(run, committed) as connection:
        twice = connection.execute(
            """
            WITH pairs AS (SELECT DISTINCT sample_id, unit FROM ids),
            twice AS (SELECT sample_id FROM pairs GROUP BY sample_id HAVING count(*) > 1)
            SELECT unit, list_sort(list(sample_id)) FROM pairs SEMI JOIN twice USING (sample_id)
            GROUP BY unit
            """
        ).fetchall()
    return dict(twice)
