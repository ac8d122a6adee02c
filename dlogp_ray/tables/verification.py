"""Whether a run is what it says: every object there, whole, and unchanged since it was written."""

import contextlib
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.amounts import amount
from dlogp_ray.errors import Damaged
from dlogp_ray.tables.content_hash import content_hash
from dlogp_ray.tables.encoding import Footer, check_lists, footer_bytes, read_footer
from dlogp_ray.tables.info import ENTRIES
from dlogp_ray.tables.object_names import UNITS, unit_index
from dlogp_ray.tables.sample_ids import sample_ids
from dlogp_ray.tables.sealed import contradictions, read_manifest
from dlogp_ray.tables.stored import StoredRun

_READERS = 4
"""Objects in memory at once: of 64 MB as stored, some 200 MB each."""
_NAMED = 20
"""Sample ids that occur twice, as many as are named."""


@dataclass(frozen=True)
class Fault:
    """Something that is wrong.

    Attributes:
        unit: Whose object it is; None where it is the run's.
        what: What was expected and what came.
    """

    unit: str | None
    what: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.unit or 'run'}: {self.what}"


def verify(
    run: StoredRun,
    advance: Callable[[], object] = lambda: None,
    copied: Callable[[str], object] = lambda unit: None,
) -> list[Fault]:
    """Read everything and name what is wrong.

    Every object is there with the size, etag and footer of the manifest; its page checksums and
    the hash of its content hold; rows of the unit x policies = its rows; lists have one length;
    values are finite; counts are those of the rows. (sample_id, policy) occurs once in the run.
    ``run.json`` is the one that the run was sealed with.

    Args:
        run: Sealed, or not: then what is there is checked, and nothing can be missing.
        advance: Called after each object.
        copied: Called with each unit whose object has another etag than the manifest's and is
            otherwise the one that it lists: a copy of a run, or one that was restored.
    """
    problems = [Fault(None, f"{name} {what}") for name, what in run.lost_beginnings().items()]
    committed = run.committed()
    sealed, seal, manifest = run.sealed, None, None
    try:
        seal = run.seal if sealed else None
    except Damaged as error:
        problems.append(Fault(None, str(error)))
    try:
        manifest = read_manifest(run.uri, seal) if sealed else None
    except Damaged as error:
        problems.append(Fault(None, str(error)))
    listed = {unit: at for at, unit in enumerate(manifest["unit"].to_pylist())} if manifest else {}
    checked = list(committed) if manifest is None else [u for u in listed if u in committed]
    rows_in = _row_counts(run)

    def check(unit: str) -> list[Fault]:
        row = None
        if manifest is not None and unit in listed:
            row = manifest.slice(listed[unit], 1).to_pylist()[0]
        wrong = _of_object(run, unit, committed[unit], row, rows_in(unit))
        if row and not store.same_etag(row["etag"], committed[unit].etag) and not wrong:
            copied(unit)
        advance()
        return [Fault(unit, what) for what in wrong]

    for faults in store.map_ahead(check, checked, _READERS):
        problems += faults
    if manifest is not None:
        problems += [Fault(u, "its object is missing") for u in listed if u not in committed]
        left_out = set(_late(run, listed))
        problems += [
            Fault(unit, "is not in the manifest")
            for unit in committed
            if unit not in listed and unit not in left_out
        ]
        problems += _of_totals(run, seal, manifest) if seal else []
    unreadable = {problem.unit for problem in problems}
    problems += _duplicates(run, [unit for unit in checked if unit not in unreadable])
    return problems


def late_units(run: StoredRun) -> list[str]:
    """Units that a partial seal has left out, and whose object came afterwards: not of the run."""
    if not run.sealed:
        return []
    return _late(run, set(run.manifest()["unit"].to_pylist()))


def _late(run: StoredRun, listed: Container[str]) -> list[str]:
    strangers = [unit for unit in run.committed() if unit not in listed]
    return [unit for unit in strangers if (unit_index(unit) or 0) < run.planned]


def report(
    run: StoredRun, problems: Sequence[Fault], repaired: Sequence[str], copied: Sequence[str] = ()
) -> tuple[list[str], dict[str, Any]]:
    """What was found: lines for people, and one document.

    Args:
        run: After a repair, if there was one.
        problems: What is wrong now.
        repaired: Units that were scored again.
        copied: Units whose objects are whole, with another etag than the manifest's.
    """
    late = [] if problems else late_units(run)
    objects = len(run.committed()) - len(late)
    lines = [f"repaired: {', '.join(repaired)}"] if repaired else []
    if copied:
        whose = amount(len(copied), "object")
        lines.append(
            f"of {whose} the contents are as sealed and the etag is not: copied or restored"
        )
    if late:
        lines.append(
            f"{amount(len(late), 'object')} came after the run was sealed without: not part of it, "
            "and read by nothing"
        )
    if problems:
        units = {problem.unit for problem in problems} - {None}
        places = [f"in {amount(len(units), 'unit')} of {run.planned}"] if units else []
        if any(problem.unit is None for problem in problems):
            places.append("in the run's own records")
        lines += [str(problem) for problem in problems]
        lines.append(
            f"{run.uri}: {amount(len(problems), 'problem')}, {' and '.join(places)}. {run.remedy}"
        )
    else:
        share = "sealed" if run.sealed else f"not sealed, {objects} of {run.planned} units"
        lines.append(f"{run.uri}: whole: {amount(objects, 'object')} ({share})")
    document = {
        "run": run.uri,
        "sealed": run.sealed,
        "objects": objects,
        "problems": [asdict(problem) for problem in problems],
        "repaired": list(repaired),
        "copied": list(copied),
        "late": late,
    }
    return lines, document


def _row_counts(run: StoredRun) -> Callable[[str], int | None]:
    """Samples of the corpus in a unit, where the list of units tells: of Parquet, row by row."""
    samples = 2 if run.info.config.pairs else 1
    columns = ["format", "start", "stop"]
    units: list[pa.RecordBatch] = []
    with contextlib.suppress(FileNotFoundError):
        data = store.read(run.path(UNITS))
        # Where entries say how rows are made, a record may be several rows, or none.
        if ENTRIES not in run.info.fingerprint:
            with contextlib.suppress(pa.ArrowException, OSError):  # of what is damaged
                units = pq.read_table(pa.BufferReader(data), columns=columns).to_batches()
    rows = pa.chunked_array(
        [
            pc.if_else(pc.equal(b["format"], "parquet"), pc.subtract(b["stop"], b["start"]), None)
            for b in units
        ],
        pa.int64(),
    )

    def count(unit: str) -> int | None:
        index = unit_index(unit) or 0
        row_count: int | None = rows[index].as_py() if index < len(rows) else None
        return None if row_count is None else samples * row_count

    return count


def _of_object(
    run: StoredRun,
    unit: str,
    entry: store.Entry,
    listed: Mapping[str, Any] | None,
    rows_in: int | None,
) -> list[str]:
    try:
        data = store.read(run.object_uri(unit))
        footer, footer_hash = read_footer(data)
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        return [f"its object can't be read: {error}"]
    body_bytes = len(data) - footer_bytes(data)
    problems = [foreign] if (foreign := run.foreign(unit, footer, body_bytes)) else []
    if not table.schema.equals(run.schema):
        return [*problems, f"its columns are not those of the run's {run.kind.table} table"]
    if listed is not None:
        counted = {
            "size_bytes": entry.size,
            "footer_hash": footer_hash,
            "content_hash": content_hash(table),
        }
        problems += [
            f"{name} is {value}, and the manifest says {listed[name]}"
            for name, value in counted.items()
            if value != listed[name]
        ]
    if footer.content_hash != content_hash(table):
        problems.append(
            f"its rows have the hash {content_hash(table)}, and its footer says "
            f"{footer.content_hash}"
        )
    return problems + _of_rows(run, table, footer, rows_in)


def _of_rows(run: StoredRun, table: pa.Table, footer: Footer, rows_in: int | None) -> list[str]:
    problems = []
    counted = {
        "tokens": pc.sum(pc.list_value_length(table["response_ids"])).as_py() or 0,
        "status": dict(Counter(table["status"].to_pylist())),
    }
    problems += [
        f"its footer says {name} {said}, and its rows say {value}"
        for name, value in counted.items()
        if (said := getattr(footer, name)) != value
    ]
    if rows_in is None:
        rows_in = footer.rows_in
    policies = Counter(table["policy"].to_pylist())
    # A range of bytes in which no line begins has no rows.
    if policies != {policy: rows_in for policy in run.info.compared if rows_in}:
        problems.append(
            f"it has {dict(policies)} rows by policy, and {rows_in} rows of the corpus with "
            f"{', '.join(run.info.compared)} were expected"
        )
    try:
        check_lists(table)
    except ValueError as error:
        problems.append(str(error))
    for field in table.schema:
        if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type):
            values = table[field.name].combine_chunks().flatten()
            if not pc.all(pc.is_finite(values), min_count=0).as_py():
                problems.append(f"{field.name} has values that are not finite")
    return problems


def _of_totals(run: StoredRun, seal: Mapping[str, Any], manifest: pa.Table) -> list[Fault]:
    missing = run.planned - len(manifest)
    wrong = contradictions(manifest, seal)
    if (said := seal.get("units_missing")) != missing:
        wrong.append(f"_SUCCESS says that {said} units are missing, and the manifest {missing}")
    return [Fault(None, what) for what in wrong]


def _duplicates(run: StoredRun, units: list[str]) -> list[Fault]:
    """(sample_id, policy) that occur more than once among rows that were not rejected for that."""
    if not units:
        return []
    with sample_ids(run, units) as connection:
        twice = connection.execute(
            """
            SELECT sample_id, policy, list_sort(list(unit)) FROM ids
            WHERE status <> 'duplicate_sample_id'
            GROUP BY sample_id, policy HAVING count(*) > 1 ORDER BY ALL
            """
        ).fetchall()
    problems = [
        Fault(None, f"sample_id {sample!r} of policy {policy} occurs in {', '.join(where)}")
        for sample, policy, where in twice[:_NAMED]
    ]
    if len(twice) > _NAMED:
        problems.append(Fault(None, f"and {len(twice) - _NAMED} more sample ids occur twice"))
    return problems
