"""The end of a run: a manifest of its objects, and the marker that says it is complete."""

import json
import tempfile

import pyarrow as pa

from dlogp_ray import store
from dlogp_ray.errors import Refused
from dlogp_ray.tables.run import Run, add_up, encode_table
from dlogp_ray.tables.sql import connect

_DUPLICATES_MEMORY = "1GB"

_SCHEMA = pa.schema(
    {
        "unit": pa.string(),
        "rows": pa.int64(),
        "tokens": pa.int64(),
        "status": pa.map_(pa.string(), pa.int64()),
        "size_bytes": pa.int64(),
        "etag": pa.string(),
        "content_hash": pa.string(),
        "duplicate_sample_ids": pa.list_(pa.string()),
    }
)


def seal(run: Run, *, partial: bool = False) -> Run:
    """Write ``manifest.parquet`` and ``_SUCCESS``, unless they are there.

    Args:
        run: A run whose units are done.
        partial: Seal although units are missing.

    Raises:
        Refused: Units are missing and ``partial`` is not set.
    """
    if run.sealed:
        return run
    committed = run.committed()
    missing = run.planned - len(committed)
    if missing and not partial:
        raise Refused(f"run {run.uri}: {missing} of {run.planned} units are missing")
    footers = dict(run.footers(committed))
    duplicates = duplicate_sample_ids(run) if len(committed) > 1 else {}
    rows = [
        {
            "unit": unit,
            "rows": sum(footer["status"].values()),
            "tokens": footer["tokens"],
            "status": list(footer["status"].items()),
            "size_bytes": committed[unit]["size"],
            "etag": store.etag(committed[unit]),
            "content_hash": footer["content_hash"],
            "duplicate_sample_ids": duplicates.get(unit, []),
        }
        for unit, footer in footers.items()
    ]
    success = add_up(list(footers.values())) | {
        "units_missing": missing,
        "duplicate_sample_ids": len({i for ids in duplicates.values() for i in ids}),
    }
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    if run.noise:
        noise = run.noise.model_dump()
        success |= {"noise": noise}
        table = table.replace_schema_metadata({"dlogp_ray.noise": json.dumps(noise)})
    # Without its marker, a manifest is left from a seal that died, and the run may have gone on.
    store.replace(run.path("manifest.parquet"), encode_table(table))
    store.create(run.path("_SUCCESS"), json.dumps(success, indent=2).encode())
    return run


def duplicate_sample_ids(run: Run) -> dict[str, list[str]]:
    """Sample ids that stand in more than one unit: unit -> its such ids, sorted.

    Found out of core: DuckDB spills to a temporary folder when 1 GB is not enough.
    """
    with tempfile.TemporaryDirectory(prefix="dlogp-duplicates-") as spill:
        connection = connect(run.uri)
        connection.execute(f"SET memory_limit = '{_DUPLICATES_MEMORY}'")
        connection.execute(f"SET temp_directory = '{spill}'")
        found = connection.execute(
            """
            WITH ids AS (
                SELECT DISTINCT sample_id, parse_filename(filename, true) AS unit
                FROM read_parquet(?, filename = true) WHERE sample_id IS NOT NULL
            ), twice AS (SELECT sample_id FROM ids GROUP BY sample_id HAVING count(*) > 1)
            SELECT unit, list_sort(list(sample_id)) FROM ids SEMI JOIN twice USING (sample_id)
            GROUP BY unit
            """,
            [run.path("scores/part-*.parquet")],
        ).fetchall()
    return dict(found)
