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
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.errors import Damaged, FingerprintMismatch, Refused, StoreFailed
from dlogp_ray.tables import schemas
from dlogp_ray.tables.committed import Committed
from dlogp_ray.tables.derived import read_derived
from dlogp_ray.tables.generations import GENERATIONS_SCHEMA
from dlogp_ray.tables.noise import NoiseFloor, Rounding
from dlogp_ray.tables.objects import TableObject
from dlogp_ray.tables.record import HASH, hash_of, record_hash, with_hash
from dlogp_ray.tables.sealed import SEAL, add_up, read_manifest, read_seal
from dlogp_ray.tables.weights import WEIGHTS_SCHEMA

TABLES = {"score": "scores", "intervene": "generations", "reweight": "weights"}
"""Job -> the table that it makes."""
ANALYSIS = "sparsity.json"
"""What says that a sparsity analysis is whole, in its folder ``sparsity/<name>``."""
MADE_OTHERWISE = "was made from something else"
SCHEMA = "schema_version"
"""Of a fingerprint: the version of the schema that the job's rows have."""
_CHECKED = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
_HASHES_SINCE = {"score": 3, "intervene": 3, "reweight": 2}
"""Job -> the schema from which on ``run.json`` has a hash of itself."""
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
        return store.exists(self.path(SEAL))

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
        return add_up(footer for _, footer in self.footers(self.entries()))

    @property
    def seal(self) -> dict[str, Any]:
        """``_SUCCESS``: the totals of a sealed run.

        Raises:
            Damaged: It is not as ``sealing.seal`` wrote it, or not of this run.
        """
        return read_seal(self.uri, self.record_hash())

    def record_hash(self) -> str:
        """SHA-256 of ``run.json`` as it is now."""
        return hashlib.sha256(store.read(self.path("run.json"))).hexdigest()

    @cached_property
    def origin(self) -> str:
        """What its objects say that they were made from: SHA-256 (hex) of its fingerprint."""
        return hash_of(self.info["fingerprint"])

    def check_there(self) -> None:
        """Check that the run is still where it was opened, and the same.

        Raises:
            StoreFailed: It was moved or deleted, or its record is another one.
        """
        try:
            same = open_run(self.uri).info == self.info
        except Refused:
            same = False
        if not same:
            raise StoreFailed(
                f"{self.uri}/run.json is gone, or another one than before: the run was moved, "
                "deleted or replaced while it was worked on. Put it back; the same command goes on"
            )

    def beginning(self, name: str) -> bytes:
        """A record that the run began with, ``units.parquet`` for one, as it was then.

        Raises:
            Damaged: It is missing, or another one.
        """
        data, wrong = self._beginning(name)
        if wrong:
            raise Damaged(f"{self.path(name)} {wrong}. {self.remedy}")
        return data

    def lost_beginnings(self) -> dict[str, str]:
        """Records that the run began with and that are not there, or others: name -> what is so."""
        return {name: wrong for name in self.hashes if (wrong := self._beginning(name)[1])}

    def _beginning(self, name: str) -> tuple[bytes, str | None]:
        try:
            data = store.read(self.path(name))
        except FileNotFoundError:
            return b"", "is missing"
        found, expected = hashlib.sha256(data).hexdigest(), self.hashes.get(name)
        if found != expected:
            return data, f"has SHA-256 {found}, and run.json says {expected}"
        return data, None

    @property
    def hashes(self) -> dict[str, str]:
        """Record that the run began with -> SHA-256."""
        return {"units.parquet": self.info["units"].get("sha256"), **self.info.get("records", {})}

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

    def analysis_tables(self, analysis: str, names: Collection[str]) -> dict[str, bytes]:
        """Tables of a sparsity analysis, as ``read_derived``."""
        folder = self.path(f"sparsity/{analysis}")
        again = f"`dlogp sparsity {self.uri} --name {analysis}` makes the analysis again"
        return read_derived(self, folder, ANALYSIS, names, again=again)

    def figures(self, analysis: str) -> pa.Table:
        """The figures of a sparsity analysis, one row each.

        Raises:
            Refused: There is none of this name.
            Damaged: As ``read_derived``.
        """
        if self.answers:
            raise Refused(
                f"run {self.uri} is of an intervene job and has no sparsity analysis: its figures "
                "are in the view `curve`"
            )
        try:
            data = self.analysis_tables(analysis, ["figures"])["figures"]
        except FileNotFoundError:
            there = ", ".join(self.analyses()) or "none"
            raise Refused(
                f"run {self.uri} has no sparsity analysis {analysis!r} (there is {there}); make it "
                f"with `dlogp sparsity {self.uri} --name {analysis}`"
            ) from None
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)

    def objects(self, *, closely: bool = False) -> list[TableObject]:
        """The run's objects: by its manifest once sealed, else what is there now.

        An object of a sealed run is the one that the manifest lists where it has its size and etag.
        A copy of a run has other etags: there the footer says whether it is that one. Before the
        seal, each footer says that its object is of this run.

        Args:
            closely: Look at the footer in any case. On a disk the etag is a time, which can be set.

        Raises:
            Damaged: Objects of a sealed run are missing, or others than the manifest lists; one of
                an open run is another's, or can't be read. They are named.
        """
        committed = self.committed()
        if not self.sealed:
            for _footer in self.footers(committed):
                pass
            return [self._object(unit, entry) for unit, entry in committed.items()]
        listed = self.manifest().select(["unit", "size_bytes", "etag", "footer_hash"])
        rows = (row for b in listed.to_batches(max_chunksize=1024) for row in b.to_pylist())
        found, wrong = list[TableObject](), list[str]()

        def difference(row: Mapping[str, Any]) -> str | None:
            entry = committed.get(row["unit"])
            if entry is None:
                return "is missing"
            if entry.size != row["size_bytes"]:
                return f"has {entry.size} bytes, not {row['size_bytes']}"
            if not closely and store.same_etag(row["etag"], entry.etag):
                return None
            footer_hash = self._footer((row["unit"], entry))["footer_hash"]
            return None if footer_hash == row["footer_hash"] else "is another object"

        for row, what in store.map_ahead(lambda row: (row, difference(row)), rows, _READERS):
            if what:
                wrong.append(f"{row['unit']} {what}")
            else:
                found.append(self._object(row["unit"], committed[row["unit"]]))
        if wrong:
            raise Damaged(
                f"run {self.uri} is sealed, but of its objects {len(wrong)} are not what the "
                f"manifest says: {'; '.join(wrong[:10])}. Put them back, or: {self.remedy}"
            )
        return found

    def entries(self) -> Mapping[str, store.Entry]:
        """The same for who reads ``footers``, which are checked then: unit -> its version."""
        if not self.sealed:
            return self.committed()
        return {one.unit: one.entry for one in self.objects()}

    def _object(self, unit: str, entry: store.Entry) -> TableObject:
        return TableObject(unit, self.object_uri(unit), entry)

    def manifest(self) -> pa.Table:
        """Every object of a sealed run, one row each.

        Raises:
            Damaged: As ``read_manifest``, or ``seal``.
        """
        return read_manifest(self.uri, self.seal)

    def footers(self, committed: Mapping[str, store.Entry]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The footer of each unit's object, read side by side.

        Yields:
            (unit, values); the footer's own hash is among them as ``footer_hash``.

        Raises:
            Damaged: One can't be read, or is of another run or unit.
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
        if foreign := self.foreign(unit, values, entry.size - needed):
            raise Damaged(f"{uri}: {foreign}. {self.remedy}")
        return values | {"footer_hash": footer_hash}

    def foreign(self, unit: str, footer: Mapping[str, Any], body_bytes: int) -> str | None:
        """How an object shows that it is not what this run made of a unit; None where it does not.

        Args:
            unit: Whose object it is to be.
            footer: Its.
            body_bytes: Before it. Rows that were written again, with a copy of the footer's values,
                have other bytes; that they are as many is for ``verify`` to see.
        """
        if footer.get("unit") != int(unit.removeprefix("part-")):
            return f"its footer says that it is of unit {footer.get('unit')}"
        # Before schema 3 (of weights, 2), neither run.json nor a footer had a hash of its own.
        if HASH in self.info and footer.get("origin") != self.origin:
            return f"its footer says that it {MADE_OTHERWISE} than this run"
        if (said := footer.get(schemas.BODY_BYTES, body_bytes)) != body_bytes:
            return (
                f"its rows have {body_bytes} bytes, and its footer says {said}: it was written "
                "again by something else"
            )
        return None

    @property
    def schema(self) -> pa.Schema:
        """Schema of its table."""
        if self.answers:
            return GENERATIONS_SCHEMA
        if self.table == "weights":
            return WEIGHTS_SCHEMA
        return schemas.scores_schema(self.info["carry"])

    def dataset(self, table: str | None = None) -> ds.Dataset:
        """The table of the run as a pyarrow dataset, which verifies checksums of pages.

        Raises:
            Refused: The run has no such table.
            Damaged: As ``objects``.
        """
        if table not in (None, self.table):
            raise Refused(f"run {self.uri}: expected table {self.table!r}, got {table!r}")
        objects = self.objects()
        if not objects:
            return ds.dataset(self.schema.empty_table())
        filesystem, _ = store.open_store(self.uri)
        paths = [store.open_store(one.uri)[1] for one in objects]
        return ds.dataset(paths, schema=self.schema, filesystem=filesystem, format=_CHECKED)

    def sql(self, query: str) -> Any:
        """Run a query over its views: its table, ``tokens``, ``rejected`` (``curve``).

        Returns:
            A DuckDB relation: print it, or take ``.fetchall()``, ``.df()``, ``.arrow()``.

        Raises:
            Refused: DuckDB refuses the query.
        """
        from dlogp_ray.tables.sql import query_run

        return query_run(self, query)


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
    since = _HASHES_SINCE.get(info.get("job", "score"), 0)
    if HASH not in info and info["fingerprint"].get(SCHEMA, 0) >= since:
        raise Damaged(f"{uri}/run.json has no hash of itself any more; put it back from a copy")
    if info.get(HASH, found := record_hash(info)) != found:
        raise Damaged(
            f"{uri}/run.json is not as the run began: its content has SHA-256 {found}, and it says "
            f"{info[HASH]}; put it back from a copy"
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
        _spell_versions(stored.get("corpus", {}), given.get("corpus", {}))
    differences = list(_differences(stored | {SCHEMA: None}, given | {SCHEMA: None}))
    if differences:
        raise FingerprintMismatch(
            f"run {run.uri} exists and was made from something else:\n"
            + "\n".join(f"  {line}" for line in differences[:10])
            + f"\nUse another {run.called}, or give what the run was made from"
        )


def _spell_versions(stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Spell versions of files that have not changed as they were spelled before schema 3."""
    for uri in stored.keys() & given.keys():
        if store.same_etag(stored[uri]["version"], given[uri]["version"]):
            given[uri]["version"] = stored[uri]["version"]


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
        info: ``run.json``, but for the hashes in it.
        records: ``units.parquet``, and what else the job's units are read from: name -> content.

    Raises:
        FingerprintMismatch: The run that is there was made from something else.
        Damaged: Or its records are not those that it began with.
    """
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in records.items()}
    said = dict(info) | {"records": info.get("records", {}) | hashes}
    info = with_hash(said)
    conditional = Run(uri, info).conditional
    store.create(f"{uri}/run.json", json.dumps(info, indent=2).encode(), conditional=conditional)
    run = open_run(uri)
    check_fingerprint(run, info["fingerprint"])
    for name, content in records.items():
        if hashes[name] == run.hashes.get(name):
            store.create(run.path(name), content, conditional=conditional)
        run.beginning(name)
    return run
