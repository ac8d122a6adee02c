"""The sample ids of a run's objects, gathered in a table that spills to disk."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import duckdb

from dlogp_ray.tables.sql import connect, rows_read
from dlogp_ray.tables.stored import StoredRun

_MEMORY = "1GB"
_OBJECTS = 500
"""In one query: DuckDB holds about 5 KB of each object of a query, outside of its memory limit."""


@contextmanager
def sample_ids(run: StoredRun, units: Iterable[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with a table ``ids`` of (sample_id, policy, status, unit), a row a row of these.

    Rows without a sample id are left out. Out of core: 1 GB of memory, the rest in a temporary
    folder.
    """
    with tempfile.TemporaryDirectory(prefix="dlogp-ids-") as spill:
        connection = connect(run.uri)
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute(f"SET temp_directory = '{spill}'")
        connection.execute(
            "CREATE TABLE ids (sample_id VARCHAR, policy VARCHAR, status VARCHAR, unit VARCHAR)"
        )
        left = iter(units)
        while uris := [run.object_uri(unit) for unit in islice(left, _OBJECTS)]:
            with rows_read(run):
                connection.execute(
                    """
                    INSERT INTO ids SELECT sample_id, policy, status, parse_filename(filename, true)
                    FROM read_parquet(?, filename = true) WHERE sample_id IS NOT NULL
                    """,
                    [uris],
                )
        try:
            yield connection
        finally:
            connection.close()
