"""A run, opened to be begun, or to be asked.

run = open_run("runs/my-run")
run.sql("SELECT policy, avg(delta_logp) FROM tokens GROUP BY policy")
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from dlogp_ray import store
from dlogp_ray.errors import Refused
from dlogp_ray.tables import derived
from dlogp_ray.tables.fingerprint import check_fingerprint
from dlogp_ray.tables.info import RunInfo
from dlogp_ray.tables.object_names import RECORD, SEAL
from dlogp_ray.tables.record import with_hash
from dlogp_ray.tables.stored import StoredRun, read_info

_CHECKED = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


class Run(StoredRun):
    """A run that is asked for its tables."""

    def analyses(self) -> dict[str, list[str]]:
        """The sparsity analyses beside its table: name -> names of its tables."""
        return derived.analyses(self)

    def figures(self, analysis: str) -> pa.Table:
        """The figures of a sparsity analysis, one row each.

        Raises:
            Refused: There is none of this name.
            Damaged: As ``derived.read_derived``.
        """
        return derived.figures(self, analysis)

    def dataset(self, table: str | None = None) -> ds.Dataset:
        """The table of the run as a pyarrow dataset, which verifies checksums of pages.

        Raises:
            Refused: The run has no such table.
            Damaged: As ``objects``.
        """
        if table not in (None, self.kind.table):
            raise Refused(f"run {self.uri}: expected table {self.kind.table!r}, got {table!r}")
        objects = self.objects()
        if not objects:
            return ds.dataset(self.schema.empty_table())
        filesystem, _ = store.open_store(self.uri)
        paths = [store.open_store(part.uri)[1] for part in objects]
        return ds.dataset(paths, schema=self.schema, filesystem=filesystem, format=_CHECKED)

    def sql(self, query: str) -> Any:
        """Run a query over its views: its table, ``tokens``, ``rejected`` (``curve``).

        Returns:
            A DuckDB relation: print it, or take ``.fetchall()``, ``.df()``, ``.arrow()``. What goes
            wrong only when its rows are read is an error of DuckDB's.

        Raises:
            Refused: DuckDB refuses the query.
        """
        from dlogp_ray.tables.sql import query_run  # with DuckDB, which not every reader needs

        return query_run(self, query)


def open_run(uri: str) -> Run:
    """Open a run for reading.

    Raises:
        Refused: There is no run at this address, or one that this version does not know.
        Damaged: Its ``run.json`` is not one.
    """
    uri = store.absolute(uri)
    return Run(uri, read_info(uri))


def find_run(uri: str) -> Run | None:
    """The run at ``uri`` if there is one.

    Raises:
        Damaged: There was one, and its record is gone.
    """
    if store.exists(f"{uri}/{RECORD}") or store.exists(f"{uri}/{SEAL}"):
        return open_run(uri)
    return None


def begin_run(uri: str, info: RunInfo, records: Mapping[str, bytes]) -> Run:
    """Create ``run.json`` and what a run begins with, or join the run that is there.

    Args:
        uri: Where.
        info: Its record, but for the hashes in it.
        records: ``units.parquet``, and what else the job's units are read from: name -> content.

    Raises:
        FingerprintMismatch: The run that is there was made from something else.
        Damaged: Or its records are not those that it began with.
    """
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in records.items()}
    said = with_hash(info.as_json() | {"records": info.records | hashes})
    conditional = not info.config.single_writer
    record = json.dumps(said, indent=2).encode()
    store.create(f"{uri}/{RECORD}", record, conditional=conditional)
    run = open_run(uri)
    check_fingerprint(run, info.fingerprint)
    for name, content in records.items():
        if hashes[name] == run.hashes.get(name):
            store.create(run.path(name), content, conditional=conditional)
        run.beginning(name)
    return run
