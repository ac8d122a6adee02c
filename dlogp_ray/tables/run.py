"""A run: the folder of one job's results, from its first object to its seal.

<output>/<run_id>/
  run.json           what the run is made from, and its noise floor; created first and once
  units.parquet      the work units, fixed before the first is scored
  scores/part-*      one object a unit; that it exists is the commit (generations/ of an intervene
                     job, which has its problems.parquet too)
  calls/<id>.json    where a call did its work, how long that took, what it died at
  failed/<unit>.json cause and attempts of a unit that could not be done
  sparsity/<name>/   statistics of the table, by `dlogp sparsity`
  weights/<name>/    a weights table, by `dlogp reweight`: a run of its own
  manifest.parquet   every object with rows, tokens, etag and content hash
  _SUCCESS           the totals; the run is sealed

run = open_run("runs/my-run")
run.sql("SELECT policy, avg(delta_logp) FROM tokens GROUP BY policy")
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.errors import Damaged, FingerprintMismatch, Refused
from dlogp_ray.tables import schemas
from dlogp_ray.tables.committed import UNIT, Committed
from dlogp_ray.tables.generations import GENERATIONS_SCHEMA
from dlogp_ray.tables.noise import NoiseFloor, Rounding
from dlogp_ray.tables.weights import WEIGHTS_SCHEMA

TABLES = {"score": "scores", "intervene": "generations", "reweight": "weights"}
"""Job -> the table that it makes."""
ANALYSIS = "sparsity.json"
"""What says that a sparsity analysis is whole, in its folder ``sparsity/<name>``."""
SCHEMA = "schema_version"
"""Of a fingerprint: the version of the schema that the job's rows have."""
_READERS = 16
_NEEDED = frozenset({"fingerprint", "units"})
"""What every ``run.json`` says."""
_FOOTER_BYTES = 64 * 1024
"""Of an object's end are asked for at once; footers with their summaries have about 10 KB."""


@dataclass(frozen=True)
class Run:
    """A run in a store.

    Attributes:
        uri: Its folder or URL.
        info: ``run.json``: config, fingerprint, package versions.
    """

    uri: str
    info: Mapping[str, Any]

    def path(self, name: str) -> str:
        """Address of an object of the run."""
        return f"{self.uri}/{name}"

    @property
    def table(self) -> str:
        """Name of the table that the job makes, and of its folder."""
        return TABLES[self.info.get("job", "score")]

    @property
    def answers(self) -> bool:
        """Whether it is an intervene job's."""
        return self.table == "generations"

    @property
    def called(self) -> str:
        """What its name is called where it is given."""
        return "--name" if self.table == "weights" else "run_id"

    @property
    def remedy(self) -> str:
        """How damaged objects are made again."""
        if self.table == "weights":
            return f"Delete {self.uri}, and `dlogp reweight` makes the table again"
        return f"`dlogp verify {self.uri} --repair` puts them aside and makes their units again"

    def object_uri(self, unit: str) -> str:
        """Address of a unit's object."""
        return self.path(f"{self.table}/{unit}.parquet")

    @property
    def sealed(self) -> bool:
        """Whether the run has ended: no object will come any more."""
        return store.exists(self.path("_SUCCESS"))

    def totals(self) -> dict[str, Any]:
        """Counts over the run: what its seal says, or what the objects' footers say now.

        Returns:
            ``units``, ``rows`` (samples x compared policies), ``tokens`` (of their responses),
            rows by ``status``, ``duplicate_sample_ids`` (in several units; known once sealed), and
            where there are any, rows of the corpus by their ``special_tokens``.

        Raises:
            Damaged: The seal, or an object's footer, can't be read.
        """
        if self.sealed:
            return self.seal
        return add_up(footer for _, footer in self.footers(self.committed()))

    @property
    def seal(self) -> dict[str, Any]:
        """``_SUCCESS``: the totals of a sealed run.

        Raises:
            Damaged: It is not what ``sealing.seal`` writes.
        """
        try:
            found = json.loads(store.read(self.path("_SUCCESS")))
        except ValueError as error:
            raise Damaged(
                f"{self.path('_SUCCESS')} can't be read: {error}; `dlogp verify {self.uri} "
                "--repair` writes it again"
            ) from None
        needed = add_up([]).keys()
        missing = needed - found.keys() if isinstance(found, dict) else needed
        if missing:
            raise Damaged(
                f"{self.path('_SUCCESS')} has no {', '.join(sorted(missing))}; `dlogp verify "
                f"{self.uri} --repair` writes it again"
            )
        return dict(found)

    def record_hash(self) -> str:
        """SHA-256 of ``run.json`` as it is now."""
        return hashlib.sha256(store.read(self.path("run.json"))).hexdigest()

    @cached_property
    def planned(self) -> int:
        """How many work units the run has."""
        return int(self.info["units"]["count"])

    @property
    def conditional(self) -> bool:
        """Whether the store creates objects conditionally, so that several may write at once."""
        return not self.info.get("config", {}).get("single_writer", False)

    @cached_property
    def noise(self) -> NoiseFloor | None:
        """What the table shows where nothing has changed; None where that was not measured."""
        found = self.info.get("noise")
        if not found:
            return None
        noise = NoiseFloor.model_validate(found)
        # A run that was made before rounding was measured; in float32 there is none.
        dtypes = self.info.get("engine", {}).get("dtype", {})
        if noise.rounding is None and {*dtypes.values()} == {"float32"}:
            return noise.model_copy(update={"rounding": Rounding()})
        return noise

    def committed(self) -> Committed:
        """Units whose object is there, as the store lists them now."""
        return Committed(store.list_objects(self.path(self.table)))

    def failures(self) -> dict[str, dict[str, Any]]:
        """Units that could not be done: unit -> cause and attempts."""
        names = sorted(name for name, _ in store.list_objects(self.path("failed")))
        return {
            name.removesuffix(".json"): json.loads(store.read(self.path(f"failed/{name}")))
            for name in names
        }

    def analyses(self) -> dict[str, list[str]]:
        """The sparsity analyses beside its table: name -> names of its tables."""
        filesystem, path = store.open_store(self.path("sparsity"))
        files: dict[str, set[str]] = {}
        for name in filesystem.glob(f"{path}/*/*"):
            *_, analysis, file = name.split("/")
            files.setdefault(analysis, set()).add(file)
        return {
            analysis: sorted(n.removesuffix(".parquet") for n in names if n.endswith(".parquet"))
            for analysis, names in sorted(files.items())
            if ANALYSIS in names
        }

    def weights_tables(self) -> dict[str, "Run"]:
        """The sealed weights tables beside its table: name -> a run."""
        filesystem, path = store.open_store(self.path("weights"))
        names = sorted(name.split("/")[-2] for name in filesystem.glob(f"{path}/*/_SUCCESS"))
        return {name: open_run(self.path(f"weights/{name}")) for name in names}

    def figures(self, analysis: str) -> pa.Table:
        """The figures of a sparsity analysis, one row each.

        Raises:
            Refused: There is none of this name.
        """
        if self.answers:
            raise Refused(
                f"run {self.uri} is of an intervene job and has no sparsity analysis: its figures "
                "are in the view `curve`"
            )
        try:
            data = store.read(self.path(f"sparsity/{analysis}/figures.parquet"))
        except FileNotFoundError:
            there = ", ".join(self.analyses()) or "none"
            raise Refused(
                f"run {self.uri} has no sparsity analysis {analysis!r} (there is {there}); make it "
                f"with `dlogp sparsity {self.uri} --name {analysis}`"
            ) from None
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)

    def object_uris(self) -> list[str]:
        """Addresses of the run's objects: by its manifest once sealed, else what is there now."""
        if self.sealed:
            units = self.manifest()["unit"].to_pylist()
        else:
            units = list(self.committed())
        return [self.object_uri(unit) for unit in units]

    def manifest(self) -> pa.Table:
        """Every object of a sealed run, one row each.

        Raises:
            Damaged: A unit has a name that no run gives.
        """
        data = store.read(self.path("manifest.parquet"))
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        for unit in table["unit"].to_pylist():
            if not UNIT.fullmatch(unit or ""):  # it becomes part of an address
                raise Damaged(f"{self.uri}/manifest.parquet names a unit {unit!r}: not of a run")
        return table

    def footers(self, committed: Mapping[str, store.Entry]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The footer of each unit's object, read side by side.

        Yields:
            (unit, values); the footer's own hash is among them as ``footer_hash``.

        Raises:
            Damaged: One can't be read.
        """
        footers = store.map_ahead(self._footer, committed.items(), _READERS)
        yield from zip(committed, footers, strict=True)

    def _footer(self, committed: tuple[str, store.Entry]) -> dict[str, Any]:
        unit, entry = committed
        uri = self.object_uri(unit)
        try:
            end = store.read_range(uri, max(0, entry.size - _FOOTER_BYTES), entry.size)
            needed = schemas.footer_bytes(end)
            if needed > len(end):
                end = store.read_range(uri, max(0, entry.size - needed), entry.size)
            values, footer_hash = schemas.footer(end)
        except (ValueError, FileNotFoundError) as error:
            raise Damaged(f"{uri} can't be read ({error}). {self.remedy}") from None
        return values | {"footer_hash": footer_hash}

    def check_objects(self) -> None:
        """Check that every object of a sealed run is there, with the size that the manifest says.

        Raises:
            Damaged: Some are not; they are named.
        """
        committed = self.committed()
        wrong = []
        for batch in self.manifest().select(["unit", "size_bytes"]).to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                entry = committed.get(row["unit"])
                if entry is None:
                    wrong.append(f"{row['unit']} is missing")
                elif entry.size != row["size_bytes"]:
                    wrong.append(f"{row['unit']} has {entry.size} bytes, not {row['size_bytes']}")
        if wrong:
            raise Damaged(
                f"run {self.uri} is sealed, but of its objects {len(wrong)} are not what the "
                f"manifest says: {'; '.join(wrong[:10])}. Put them back, or: {self.remedy}"
            )

    @property
    def schema(self) -> pa.Schema:
        """Schema of its table."""
        if self.answers:
            return GENERATIONS_SCHEMA
        if self.table == "weights":
            return WEIGHTS_SCHEMA
        return schemas.scores_schema(self.info["carry"])

    def dataset(self, table: str | None = None) -> ds.Dataset:
        """The table of the run as a pyarrow dataset.

        Raises:
            Refused: The run has no such table.
        """
        if table not in (None, self.table):
            raise Refused(f"run {self.uri}: expected table {self.table!r}, got {table!r}")
        uris = self.object_uris()
        if not uris:
            return ds.dataset(self.schema.empty_table())
        filesystem, _ = store.open_store(self.uri)
        paths = [store.open_store(uri)[1] for uri in uris]
        return ds.dataset(paths, schema=self.schema, filesystem=filesystem, format="parquet")

    def sql(self, query: str) -> Any:
        """Run a query over its views: its table, ``tokens``, ``rejected`` (``curve``).

        Returns:
            A DuckDB relation: print it, or take ``.fetchall()``, ``.df()``, ``.arrow()``.

        Raises:
            Refused: DuckDB refuses the query.
        """
        from dlogp_ray.tables.sql import query_run

        return query_run(self, query)


def add_up(footers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The totals of objects with these footers."""
    status, special_tokens = Counter[str](), Counter[str]()
    units, tokens = 0, 0
    for footer in footers:
        status.update(footer["status"])
        special_tokens.update(footer.get("special_tokens", {}))
        tokens += footer["tokens"]
        units += 1
    return {
        "units": units,
        "rows": status.total(),
        "tokens": tokens,
        "status": dict(status),
        "duplicate_sample_ids": 0,
    } | ({"special_tokens": dict(special_tokens)} if special_tokens else {})


def open_run(uri: str) -> Run:
    """Open a run for reading.

    Raises:
        Refused: There is no run at this address.
        Damaged: Its ``run.json`` is not one.
    """
    uri = store.absolute(uri)
    try:
        info = json.loads(store.read(f"{uri}/run.json"))
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(
            f"{uri}: there is no run there (no run.json); give the folder <output>/<run_id>"
        ) from None
    except ValueError as error:
        raise Damaged(f"{uri}/run.json can't be read: {error}; put it back from a copy") from None
    missing = _NEEDED - info.keys() if isinstance(info, dict) else _NEEDED
    if missing:
        raise Damaged(
            f"{uri}/run.json has no {', '.join(sorted(missing))}: it is not the record of a run"
        )
    return Run(uri, info)


def find_run(uri: str) -> Run | None:
    """The run at ``uri`` if there is one."""
    return open_run(uri) if store.exists(f"{uri}/run.json") else None


def check_fingerprint(run: Run, fingerprint: Mapping[str, Any]) -> None:
    """Check that an existing run was made from the same inputs, policies and settings.

    Raises:
        FingerprintMismatch: They differ; the differences are named.
        Refused: As ``check_schema``, of a run to which rows may still be added.
    """
    if not run.sealed:
        check_schema(run, fingerprint)
    stored, given = run.info["fingerprint"], json.loads(json.dumps(fingerprint))
    if stored.get(SCHEMA) != given.get(SCHEMA):  # a later one may name more
        given = {name: value for name, value in given.items() if name in stored}
    differences = list(_differences(stored | {SCHEMA: None}, given | {SCHEMA: None}))
    if differences:
        raise FingerprintMismatch(
            f"run {run.uri} exists and was made from something else:\n"
            + "\n".join(f"  {line}" for line in differences[:10])
            + f"\nUse another {run.called}, or give what the run was made from"
        )


def check_schema(run: Run, fingerprint: Mapping[str, Any]) -> None:
    """Check that what a job would add to a run is of the schema that its rows have.

    Raises:
        Refused: They are of another.
    """
    stored, given = run.info["fingerprint"].get(SCHEMA), fingerprint.get(SCHEMA)
    if stored != given:
        begun_by = run.info.get("versions", {}).get("dlogp_ray", "the version that began it")
        raise Refused(
            f"run {run.uri} was begun by dlogp_ray {begun_by}, which writes schema {stored} of the "
            f"{run.table} table; this version writes schema {given}, and a run has one. Use "
            f"another {run.called}, or dlogp_ray {begun_by}"
        )


def _differences(stored: Any, given: Any, where: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys()):
            name = f"{where} {key}".strip()
            if key not in stored:
                yield f"{name}: the run has none, now {_short(given[key])}"
            elif key not in given:
                yield f"{name}: the run has {_short(stored[key])}, now none"
            else:
                yield from _differences(stored[key], given[key], name)
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        for index, (mine, theirs) in enumerate(zip(stored, given, strict=True)):
            yield from _differences(mine, theirs, f"{where}[{index}]")
    elif stored != given:
        yield f"{where}: the run has {_short(stored)}, now {_short(given)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def begin_run(uri: str, info: Mapping[str, Any], records: Mapping[str, bytes]) -> Run:
    """Create ``run.json`` and what a run begins with, or join the run that is there.

    Args:
        uri: Where.
        info: ``run.json``.
        records: ``units.parquet``, and what else the job's units are read from: name -> content.

    Raises:
        FingerprintMismatch: The run that is there was made from something else.
    """
    conditional = Run(uri, info).conditional
    store.create(f"{uri}/run.json", json.dumps(info, indent=2).encode(), conditional=conditional)
    run = open_run(uri)
    check_fingerprint(run, info["fingerprint"])
    for name, content in records.items():
        store.create(run.path(name), content, conditional=conditional)
    return run


def encode_table(table: pa.Table) -> bytes:
    """A small Parquet object with page checksums."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
