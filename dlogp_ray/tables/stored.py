"""A run as it is stored: its record, its objects and their footers, its seal.

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
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
from pydantic import ValidationError

from dlogp_ray import store
from dlogp_ray.amounts import amount
from dlogp_ray.errors import Damaged, Refused, StoreFailed
from dlogp_ray.tables.committed import Committed
from dlogp_ray.tables.encoding import Footer, footer_bytes, read_footer
from dlogp_ray.tables.info import SCHEMA, RunInfo, ScoreInfo
from dlogp_ray.tables.kinds import KINDS, Kind
from dlogp_ray.tables.noise import NoiseFloor, Rounding
from dlogp_ray.tables.object_folder import ObjectFolder
from dlogp_ray.tables.object_names import RECORD, SEAL, UNITS, unit_index
from dlogp_ray.tables.objects import TableObject
from dlogp_ray.tables.record import HASH, hash_of, record_hash
from dlogp_ray.tables.sealed import Counted, add_up, read_manifest, read_seal

MADE_OTHERWISE = "was made from something else"
_READERS = 16
_FOOTER_BYTES = 64 * 1024
"""Of an object's end are asked for at once; footers with their summaries have about 10 KB."""

Info = TypeVar("Info", bound=RunInfo)


class UnitFooter(NamedTuple):
    """The footer of a unit's object.

    Attributes:
        said: In it.
        sha256: Of it.
    """

    said: Footer
    sha256: str


@dataclass(frozen=True)
class StoredRun:
    """A run in a store.

    Attributes:
        uri: Its folder or URL.
        info: Its record: config, fingerprint, package versions.
    """

    uri: str
    info: RunInfo

    def path(self, name: str) -> str:
        """Address of an object of the run."""
        return f"{self.uri}/{name}"

    @property
    def kind(self) -> Kind:
        """Of its table."""
        return KINDS[self.info.job]

    def info_of(self, kind: type[Info]) -> Info:
        """Its record, of a job that makes it so.

        Raises:
            Refused: Another job has made the run.
        """
        if not isinstance(self.info, kind):
            raise Refused(
                f"run {self.uri} is of {self.kind.table}, which the {self.info.job} job makes"
            )
        return self.info

    @property
    def remedy(self) -> str:
        """How damaged objects are made again."""
        return self.kind.remedy.format(uri=self.uri)

    @property
    def schema(self) -> pa.Schema:
        """Of its table."""
        return self.kind.schema(self.info.carry)

    @cached_property
    def folder(self) -> ObjectFolder:
        """Where its objects are."""
        return ObjectFolder(self.uri, self.kind, self.origin, self.conditional)

    def object_uri(self, unit: str) -> str:
        """Address of a unit's object."""
        return self.folder.uri(unit)

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
        said = (footer.said for _, footer in self.footers(self.entries()))
        return add_up(Counted(one.tokens, one.status, one.special_tokens) for one in said)

    @property
    def seal(self) -> dict[str, Any]:
        """``_SUCCESS``: the totals of a sealed run.

        Raises:
            Damaged: It is not as ``sealing.seal`` wrote it, or not of this run.
        """
        return read_seal(self.uri, self.record_hash())

    def record_hash(self) -> str:
        """SHA-256 of ``run.json`` as it is now."""
        return hashlib.sha256(store.read(self.path(RECORD))).hexdigest()

    @cached_property
    def origin(self) -> str:
        """What its objects say that they were made from: SHA-256 (hex) of its fingerprint."""
        return hash_of(self.info.fingerprint)

    def check_there(self) -> None:
        """Check that the run is still where it was opened, and the same.

        Raises:
            StoreFailed: It was moved or deleted, or its record is another one.
        """
        try:
            same = read_info(self.uri) == self.info
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
        sha256, expected = hashlib.sha256(data).hexdigest(), self.hashes.get(name)
        if sha256 != expected:
            return data, f"has SHA-256 {sha256}, and run.json says {expected}"
        return data, None

    @property
    def hashes(self) -> dict[str, str | None]:
        """Record that the run began with -> SHA-256."""
        return {UNITS: self.info.units.sha256, **self.info.records}

    @property
    def planned(self) -> int:
        """How many work units the run has."""
        return self.info.units.count

    @property
    def conditional(self) -> bool:
        """Whether the store creates objects conditionally, so that several may write at once."""
        return not self.info.config.single_writer

    @cached_property
    def noise(self) -> NoiseFloor | None:
        """What the table shows where nothing has changed; None where that was not measured."""
        if not isinstance(self.info, ScoreInfo) or self.info.noise is None:
            return None
        noise = self.info.noise
        # A run that was made before rounding was measured; in float32 there is none.
        if noise.rounding is None and {*self.info.engine.dtype.values()} == {"float32"}:
            return noise.model_copy(update={"rounding": Rounding()})
        return noise

    def committed(self) -> Committed:
        """Units whose object is there, as the store lists them now."""
        return Committed(store.list_objects(self.path(self.kind.table)))

    def failures(self) -> dict[str, dict[str, Any]]:
        """Units that could not be done: unit -> cause and attempts."""
        names = sorted(name for name, _ in store.list_objects(self.path("failed")))
        return {
            name.removesuffix(".json"): json.loads(store.read(self.path(f"failed/{name}")))
            for name in names
        }

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
        there, wrong = list[TableObject](), list[str]()

        def difference(row: Mapping[str, Any]) -> str | None:
            entry = committed.get(row["unit"])
            if entry is None:
                return "is missing"
            if entry.size != row["size_bytes"]:
                return f"has {entry.size} bytes, not {row['size_bytes']}"
            if not closely and store.same_etag(row["etag"], entry.etag):
                return None
            sha256 = self._footer((row["unit"], entry)).sha256
            return None if sha256 == row["footer_hash"] else "is another object"

        for row, what in store.map_ahead(lambda row: (row, difference(row)), rows, _READERS):
            if what:
                wrong.append(f"{row['unit']} {what}")
            else:
                there.append(self._object(row["unit"], committed[row["unit"]]))
        if wrong:
            raise Damaged(
                f"run {self.uri} is sealed, and {amount(len(wrong), 'object')} of it not as the "
                f"manifest says: {'; '.join(wrong[:10])}. Put them back, or: {self.remedy}"
            )
        return there

    def entries(self) -> Mapping[str, store.Entry]:
        """The same for who reads ``footers``, which are checked then: unit -> its version."""
        if not self.sealed:
            return self.committed()
        return {item.unit: item.entry for item in self.objects()}

    def _object(self, unit: str, entry: store.Entry) -> TableObject:
        return TableObject(unit, self.object_uri(unit), entry)

    def manifest(self) -> pa.Table:
        """Every object of a sealed run, one row each.

        Raises:
            Damaged: As ``read_manifest``, or ``seal``.
        """
        return read_manifest(self.uri, self.seal)

    def footers(self, committed: Mapping[str, store.Entry]) -> Iterator[tuple[str, UnitFooter]]:
        """The footer of each unit's object, read side by side.

        Yields:
            (unit, footer)

        Raises:
            Damaged: One can't be read, or is of another run or unit.
        """
        footers = store.map_ahead(self._footer, committed.items(), _READERS)
        yield from zip(committed, footers, strict=True)

    def _footer(self, committed: tuple[str, store.Entry]) -> UnitFooter:
        unit, entry = committed
        uri = self.object_uri(unit)
        try:
            end = store.read_range(uri, max(0, entry.size - _FOOTER_BYTES), entry.size)
            needed = footer_bytes(end)
            if needed > len(end):
                end = store.read_range(uri, max(0, entry.size - needed), entry.size)
            footer = UnitFooter(*read_footer(end))
        except (ValueError, FileNotFoundError) as error:
            raise Damaged(f"{uri} can't be read ({error}). {self.remedy}") from None
        if foreign := self.foreign(unit, footer.said, entry.size - needed):
            raise Damaged(f"{uri}: {foreign}. {self.remedy}")
        return footer

    def foreign(self, unit: str, footer: Footer, body_bytes: int) -> str | None:
        """How an object shows that it is not what this run made of a unit; None where it does not.

        Args:
            unit: Whose object it is to be.
            footer: Its.
            body_bytes: Before it. Rows that were written again, with a copy of the footer's values,
                have other bytes; that they are as many is for ``verify`` to see.
        """
        if footer.unit != unit_index(unit):
            return f"its footer says that it is of unit {footer.unit}"
        # Before ``Kind.hashed_since``, neither run.json nor a footer had a hash of its own.
        if self.info.sha256 is not None and footer.origin != self.origin:
            return f"its footer says that it {MADE_OTHERWISE} than this run"
        if footer.says_bytes and footer.body_bytes != body_bytes:
            return (
                f"its rows have {body_bytes} bytes, and its footer says {footer.body_bytes}: it "
                "was written again by something else"
            )
        return None


def read_info(uri: str) -> RunInfo:
    """The record of the run at ``uri``.

    Raises:
        Refused: There is no run at this address, or one that this version does not know.
        Damaged: Its ``run.json`` is not as the run began.
    """
    where = f"{uri}/{RECORD}"
    try:
        said = json.loads(store.read(where))
    except (FileNotFoundError, NotADirectoryError):
        if store.exists(f"{uri}/{SEAL}"):
            raise Damaged(
                f"run {uri} is sealed, and its {RECORD} is gone; put it back from a copy, or give "
                "another run_id"
            ) from None
        raise Refused(
            f"{uri}: there is no run there (no run.json); give the folder <output>/<run_id>"
        ) from None
    except ValueError as error:
        raise Damaged(f"{where} can't be read: {error}; put it back from a copy") from None
    if not isinstance(said, dict) or not isinstance(job := said.get("job"), str):
        raise Damaged(f"{where} does not say which job it is of: it is not the record of a run")
    if job not in KINDS:
        raise Refused(
            f"{uri} is the run of a job {job!r}, which this version of dlogp_ray does not know; "
            f"read it with the version that wrote it ({_written_by(said)})"
        )
    kind = KINDS[job]
    needed = {name for name, field in kind.info.model_fields.items() if field.is_required()}
    if missing := needed - said.keys():
        raise Damaged(
            f"{where} has no {', '.join(sorted(missing))}: it is not the record of a {job} run"
        )
    now = record_hash(said)
    if said.get(HASH, now) != now:
        raise Damaged(
            f"{where} is not as the run began: its content has SHA-256 {now}, and it says "
            f"{said[HASH]}; put it back from a copy"
        )
    try:
        version = int(said["fingerprint"].get(SCHEMA, 0))
        if HASH not in said and version >= kind.hashed_since:
            raise Damaged(f"{where} has no hash of itself any more; put it back from a copy")
        info = kind.info.model_validate(said)
    except (ValueError, AttributeError, TypeError) as error:
        raise Damaged(f"{where} is not the record of a {job} run: {_told(error)}") from None
    if version > kind.schema_version:
        raise Refused(
            f"{uri} is of schema {version} of the {kind.table} table, and this version of "
            f"dlogp_ray knows those up to {kind.schema_version}; read it with the version that "
            f"wrote it ({_written_by(said)})"
        )
    return info


def _written_by(said: Mapping[str, Any]) -> str:
    versions = said.get("versions")
    version = versions.get("dlogp_ray") if isinstance(versions, dict) else None
    return f"dlogp_ray {version}" if version else "its run.json does not say which"


def _told(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:5]
    )
