"""Damage made by hand: each kind is found, and named with the unit that it is in."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_records import footer_of, put_object, score_info

from dlogp_ray.corpus.units import SCHEMA, Units, encode_units
from dlogp_ray.errors import Damaged
from dlogp_ray.tables.content_hash import content_hash
from dlogp_ray.tables.encoding import encode_object, encode_table, footer_bytes
from dlogp_ray.tables.run import Run, begin_run, open_run
from dlogp_ray.tables.scores import STATISTIC_FIELDS, scores_schema
from dlogp_ray.tables.sealing import seal
from dlogp_ray.tables.verification import Fault, report, verify

POLICIES = ("rl-1", "rl-2")
ROWS = 5  # of the corpus in each unit
UNITS = Units(
    pa.table(
        [
            [0, 1, 2],
            ["corpus.parquet"] * 3,
            ["parquet"] * 3,
            [None] * 3,
            [0, ROWS, 2 * ROWS],
            [ROWS, 2 * ROWS, 3 * ROWS],
            [99] * 3,
            [99] * 3,
            [99] * 3,
            ["1"] * 3,
            [0] * 3,
        ],
        schema=SCHEMA,
    )
)
SECOND = "part-00000001"
ANOTHER = "manifest.parquet is another one than the run was sealed with"
LATER = {"sha256", "manifest_sha256"}
"""What ``_SUCCESS`` has not said from the beginning."""


def table_of(index: int) -> pa.Table:
    """A unit's rows: responses of 40 to 80 tokens with random statistics, the last one rejected."""
    rng = np.random.default_rng(index)
    rows = []
    for number in range(ROWS):
        n = 0 if number == ROWS - 1 else int(rng.integers(40, 80))
        for policy in POLICIES:
            lists = {
                field.name: rng.integers(0, 2, n).astype(bool).tolist()
                if pa.types.is_boolean(field.type.value_type)
                else rng.integers(1, 9, n).tolist()
                if pa.types.is_integer(field.type.value_type)
                else rng.normal(size=n).tolist()
                for field in STATISTIC_FIELDS
            }
            rows.append(
                {
                    "sample_id": f"s{index}-{number}",
                    "policy": policy,
                    "status": "ok" if n else "too_long",
                    "source_file": "corpus.parquet",
                    "source_offset": ROWS * index + number,
                    "from_text": False,
                    "response_ids": rng.integers(2, 60, n).tolist(),
                    "response_mask": [True] * n,
                }
                | lists
            )
    return pa.Table.from_pylist(rows, schema=scores_schema({}))


def put(run: Run, index: int, table: pa.Table) -> None:
    put_object(run, index, table, rows_in=ROWS)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three units of five rows with two policies, not sealed."""
    units = encode_units(UNITS)
    info = score_info(len(UNITS), {"compared": POLICIES})
    run = begin_run(str(tmp_path / "run"), info, {"units.parquet": units})
    for index in range(len(UNITS)):
        put(run, index, table_of(index))
    return run


def test_an_undamaged_run_has_no_problems(run: Run) -> None:
    seen: list[None] = []
    assert verify(run, lambda: seen.append(None)) == []
    assert len(seen) == 3
    seal(run)
    assert verify(run) == []


@dataclass
class Sealed:
    """A sealed run on this disk, to be damaged."""

    run: Run

    def path(self, name: str) -> Path:
        return Path(self.run.path(name))

    @property
    def object(self) -> Path:
        return self.path(f"scores/{SECOND}.parquet")

    def change(self, name: str, edit: Callable[[bytes], bytes]) -> None:
        """Change a file's bytes; its time of change, which is its etag here, stays."""
        path = self.path(name)
        times = path.stat()
        path.write_bytes(edit(path.read_bytes()))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def sealed(run: Run) -> Sealed:
    return Sealed(seal(run))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def missing(it: Sealed) -> None:
    it.object.unlink()


def truncated(it: Sealed) -> None:
    it.change(f"scores/{SECOND}.parquet", lambda data: data[: len(data) // 2])


def empty(it: Sealed) -> None:
    it.change(f"scores/{SECOND}.parquet", lambda _data: b"")


def flipped_in_a_page(it: Sealed) -> None:
    # of a column's values, well before the footer
    it.change(f"scores/{SECOND}.parquet", lambda data: flipped(data, len(data) // 3))


def flipped_in_the_footer(it: Sealed) -> None:
    def edit(data: bytes) -> bytes:
        assert data.count(b'{"ok": 8, "too_long": 2}') == 1
        return data.replace(b'{"ok": 8, "too_long": 2}', b'{"ok": 9, "too_long": 1}')

    it.change(f"scores/{SECOND}.parquet", edit)


def another_units_object(it: Sealed) -> None:
    shutil.copy2(it.path("scores/part-00000000.parquet"), it.object)


def rows_that_were_changed(it: Sealed) -> None:
    # a well-formed object of other values: only the manifest tells
    table = table_of(1)
    values = [[0.5] * len(row) for row in table["delta_logp"].to_pylist()]
    at = table.schema.get_field_index("delta_logp")
    column = pa.array(values, table.schema.field(at).type)
    changed = table.set_column(at, table.schema.field(at), column)
    it.change(
        f"scores/{SECOND}.parquet",
        lambda _: encode_object(changed, footer_of(changed, 1, it.run.origin, rows_in=ROWS)),
    )


def written_with_other_types(it: Sealed) -> None:
    """As polars does."""
    path = it.path(f"scores/{SECOND}.parquet")
    table = pq.read_table(path)
    kind = pa.large_list(pa.float32())
    at = table.schema.get_field_index("js")
    pq.write_table(table.set_column(at, "js", table["js"].cast(kind)), path, store_schema=True)


def seal_without_its_hash(it: Sealed) -> None:
    path = it.path("_SUCCESS")
    found = json.loads(path.read_text()) | {"rows": 999}
    del found["sha256"]
    path.write_text(json.dumps(found))


def seal_that_is_a_folder(it: Sealed) -> None:
    it.path("_SUCCESS").unlink()
    it.path("_SUCCESS").mkdir()


def seal_emptied(it: Sealed) -> None:
    it.path("_SUCCESS").write_bytes(b"")


def seal_with_more_behind_it(it: Sealed) -> None:
    it.change("_SUCCESS", lambda data: data + b"}")


def seal_of_another_kind(it: Sealed) -> None:
    it.change("_SUCCESS", lambda _: b'["units"]')


def record_changed(it: Sealed) -> None:
    it.change("run.json", lambda data: data.replace(b'"config": {}', b'"config": {"a": 2}'))


def test_a_record_that_was_changed_is_not_opened(sealed: Sealed) -> None:
    record_changed(sealed)
    with pytest.raises(Damaged, match=r"run\.json is not as the run began"):
        open_run(sealed.run.uri)


def record_spelled_otherwise(it: Sealed) -> None:
    it.change("run.json", lambda data: json.dumps(json.loads(data)).encode())


def manifest_damaged(it: Sealed) -> None:
    it.change("manifest.parquet", lambda data: flipped(data, 40))


def manifest_that_leaves_the_run(it: Sealed) -> None:
    table = it.run.manifest()
    units = pa.array(["part-00000000", "../../../etc/passwd", "part-00000002"])
    changed = encode_table(table.set_column(0, table.schema.field(0), units))
    it.change("manifest.parquet", lambda _: changed)


def before(damage: Callable[[Sealed], None]) -> Callable[[Sealed], None]:
    """Of a run that was sealed before its seal had hashes."""

    def do(it: Sealed) -> None:
        path = it.path("_SUCCESS")
        found = json.loads(path.read_text())
        path.write_text(json.dumps({k: found[k] for k in found.keys() - LATER}))
        damage(it)

    return do


def manifest_cut(it: Sealed) -> None:
    table = it.run.manifest().slice(0, 2)
    it.change("manifest.parquet", lambda _: encode_table(table))


def a_stranger(it: Sealed) -> None:
    it.path("scores/part-00000007.parquet").write_bytes(it.object.read_bytes())


def totals_changed(it: Sealed) -> None:
    it.change("_SUCCESS", lambda data: data.replace(b'"units": 3', b'"units": 4'))


def units_changed(it: Sealed) -> None:
    it.change("units.parquet", lambda data: flipped(data, len(data) // 2))


def units_missing(it: Sealed) -> None:
    it.path("units.parquet").unlink()


@pytest.mark.parametrize(
    ("damage", "unit", "named"),
    [
        (missing, SECOND, "its object is missing"),
        (truncated, SECOND, "its object can't be read"),
        (empty, SECOND, "its object can't be read"),
        (flipped_in_a_page, SECOND, "its object can't be read"),
        (flipped_in_the_footer, SECOND, "footer_hash is"),
        (another_units_object, SECOND, "content_hash is"),
        (rows_that_were_changed, SECOND, "content_hash is"),
        (manifest_damaged, None, ANOTHER),
        (manifest_that_leaves_the_run, None, ANOTHER),
        (manifest_cut, None, ANOTHER),
        (before(manifest_damaged), None, "manifest.parquet can't be read"),
        (before(manifest_that_leaves_the_run), None, "names a unit '../../../etc/passwd'"),
        (before(manifest_cut), None, "_SUCCESS says units 3, and the manifest 2"),
        (a_stranger, "part-00000007", "is not in the manifest"),
        (totals_changed, None, "_SUCCESS is not as it was written"),
        (before(totals_changed), None, "_SUCCESS says units 4, and the manifest 3"),
        (written_with_other_types, SECOND, "its columns are not those of the run's scores table"),
        (seal_without_its_hash, None, "_SUCCESS is not as it was written"),
        (seal_that_is_a_folder, None, "_SUCCESS can't be read"),
        (seal_emptied, None, "_SUCCESS can't be read"),
        (seal_with_more_behind_it, None, "_SUCCESS can't be read"),
        (seal_of_another_kind, None, "_SUCCESS has no duplicate_sample_ids, rows"),
        (record_spelled_otherwise, None, "run.json has SHA-256"),
        (units_changed, None, "units.parquet has SHA-256"),
        (units_missing, None, "units.parquet is missing"),
    ],
)
def test_damage_to_a_sealed_run_is_found_where_it_is(
    damage: Callable[[Sealed], None], unit: str | None, named: str, sealed: Sealed
) -> None:
    damage(sealed)
    problems = verify(open_run(sealed.run.uri))
    assert any(problem.unit == unit and named in problem.what for problem in problems), problems
    assert {problem.unit for problem in problems} <= {unit, None}  # and nowhere else


def test_damage_beside_a_damaged_seal_is_found(sealed: Sealed) -> None:
    for damage in (seal_emptied, a_stranger, missing):
        damage(sealed)
    found = {(problem.unit, problem.what) for problem in verify(open_run(sealed.run.uri))}
    assert (SECOND, "its object is missing") in found
    assert ("part-00000007", "is not in the manifest") in found


def test_a_copy_of_a_run_is_whole_and_said_to_be_one(sealed: Sealed, tmp_path: Path) -> None:
    shutil.copytree(sealed.run.uri, tmp_path / "copy", copy_function=shutil.copyfile)
    run, copied = open_run(str(tmp_path / "copy")), list[str]()
    assert verify(run, copied=copied.append) == []
    assert sorted(copied) == list(run.committed())
    lines, document = report(run, [], [], sorted(copied))
    assert "of 3 objects the contents are as sealed and the etag is not" in lines[0]
    assert document["copied"] == sorted(copied)


def test_a_copy_that_was_changed_is_damaged_and_the_others_are_not(
    sealed: Sealed, tmp_path: Path
) -> None:
    shutil.copytree(sealed.run.uri, tmp_path / "copy", copy_function=shutil.copyfile)
    run, copied = open_run(str(tmp_path / "copy")), list[str]()
    truncated(Sealed(run))
    assert {problem.unit for problem in verify(run, copied=copied.append)} == {SECOND}
    assert sorted(copied) == ["part-00000000", "part-00000002"]


def written_directly(run: Run, table: pa.Table, hashed: pa.Table | None = None) -> None:
    """Replace the second object by what ``encode_object`` would refuse, its footer in keeping.

    Or, but for the hash, which is that of ``hashed``.
    """
    said = {"rows_in": ROWS, "content_hash": content_hash(hashed or table)}
    values = footer_of(table, 1, run.origin, **said).model_dump(exclude={"body_bytes"})
    metadata = {f"dlogp_ray.{key}": json.dumps(value) for key, value in values.items()}
    path = Path(run.object_uri(SECOND))
    pq.write_table(table.replace_schema_metadata(metadata), path, write_page_checksum=True)
    assert footer_bytes(path.read_bytes()) > 0


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = table.schema.get_field_index(name)
    field = table.schema.field(at)
    return table.set_column(at, field, pa.array(values, field.type))


def shorter_list(table: pa.Table) -> pa.Table:
    values = table["js"].to_pylist()
    values[0] = values[0][:-1]
    return with_column(table, "js", values)


def not_a_number(table: pa.Table) -> pa.Table:
    values = table["kl_rl_base"].to_pylist()
    values[2][3] = float("nan")
    return with_column(table, "kl_rl_base", values)


def infinite(table: pa.Table) -> pa.Table:
    values = table["logp_base"].to_pylist()
    values[2][3] = float("-inf")
    return with_column(table, "logp_base", values)


def a_row_less(table: pa.Table) -> pa.Table:
    return table.slice(1)


def a_sample_less(table: pa.Table) -> pa.Table:
    return table.slice(2)


def an_id_of_another_unit(table: pa.Table) -> pa.Table:
    return with_column(table, "sample_id", ["s0-0", "s0-0", *table["sample_id"].to_pylist()[2:]])


def a_column_less(table: pa.Table) -> pa.Table:
    return table.drop_columns(["js"])


@pytest.mark.parametrize(
    ("damage", "unit", "named"),
    [
        (shorter_list, SECOND, "js has"),
        (not_a_number, SECOND, "kl_rl_base has values that are not finite"),
        (infinite, SECOND, "logp_base has values that are not finite"),
        (a_row_less, SECOND, "{'rl-2': 5, 'rl-1': 4} rows by policy, and 5 rows of the corpus"),
        (a_sample_less, SECOND, "{'rl-1': 4, 'rl-2': 4} rows by policy, and 5 rows of the corpus"),
        (an_id_of_another_unit, None, "sample_id 's0-0' of policy rl-1 occurs in part-00000000, "),
        (a_column_less, SECOND, "its columns are not those"),
    ],
)
def test_wrong_rows_are_found_without_a_manifest(
    damage: Callable[[pa.Table], pa.Table], unit: str | None, named: str, run: Run
) -> None:
    written_directly(run, damage(table_of(1)))
    problems = verify(run)
    assert any(problem.unit == unit and named in problem.what for problem in problems), problems
    assert {problem.unit for problem in problems} == {unit}


def test_rows_that_are_not_those_of_the_footer_are_found_without_a_manifest(run: Run) -> None:
    table = table_of(1)
    halves = [[0.5] * len(row) for row in table["delta_logp"].to_pylist()]
    written_directly(run, with_column(table, "delta_logp", halves), hashed=table)
    (problem,) = verify(run)
    assert problem.unit == SECOND
    assert "its rows have the hash" in problem.what


def test_an_id_that_was_rejected_as_a_duplicate_is_no_problem(run: Run) -> None:
    table = an_id_of_another_unit(table_of(1))
    states = ["duplicate_sample_id"] * 2 + table["status"].to_pylist()[2:]
    put(run, 1, with_column(table, "status", states))
    assert verify(run) == []


def test_a_problem_is_one_line() -> None:
    assert str(Fault("part-00000001", "is missing")) == "part-00000001: is missing"
    assert str(Fault(None, "is damaged")) == "run: is damaged"
