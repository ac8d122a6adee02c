"""A run from its first object to its seal: hand-made objects, so that every total is known."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_records import put_object, score_info

from dlogp_ray import store
from dlogp_ray.errors import Damaged, ExitCode, FingerprintMismatch, Refused
from dlogp_ray.tables.content_hash import content_hash
from dlogp_ray.tables.fingerprint import check_fingerprint
from dlogp_ray.tables.record import record_hash, with_hash
from dlogp_ray.tables.run import Run, begin_run, find_run, open_run
from dlogp_ray.tables.scores import scores_schema
from dlogp_ray.tables.sealed import totals
from dlogp_ray.tables.sealing import duplicate_sample_ids, seal
from dlogp_ray.tables.sql import confined, rows_read

FINGERPRINT = {"policies": {"base": {"dtype": "bfloat16"}, "rl": {}}, "temperature": 1.0}


def make_run(uri: Path | str, units: int = 2) -> Run:
    info = score_info(units, {"fingerprint": FINGERPRINT, "carry": {"level": "int64"}})
    return begin_run(str(uri), info, {"units.parquet": b"units"})


def scored(sample_id: str, delta: list[float], **changes: Any) -> dict[str, Any]:
    """A row of a pair with these Δlog p; what a query here does not ask for is null."""
    return {
        "sample_id": sample_id,
        "policy": "rl",
        "status": "ok",
        "source_file": "corpus.jsonl",
        "source_offset": 0,
        "from_text": False,
        "response_ids": list(range(2, 2 + len(delta))),
        "response_mask": [True] * len(delta),
        "delta_logp": delta,
        "level": 5,
    } | changes


def rejected(sample_id: str) -> dict[str, Any]:
    return scored(sample_id, [], status="too_long", error="expected less")


def put_unit(run: Run, index: int, rows: list[dict[str, Any]]) -> pa.Table:
    table = pa.Table.from_pylist(rows, schema=scores_schema({"level": "int64"}))
    put_object(run, index, table)
    return table


FIRST = [scored("s0", [0.5, -1.0]), rejected("s1")]
SECOND = [scored("s2", [2.0])]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two units: s0 with Δ 0.5, -1.0; s1 rejected; s2 with Δ 2.0."""
    run = make_run(tmp_path / "out" / "r")
    put_unit(run, 0, FIRST)
    put_unit(run, 1, SECOND)
    return run


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{torn", r"run\.json can't be read"),
        ("\xff", r"run\.json can't be read"),
        ("[]", "does not say which job"),
        ('{"job": 3}', "does not say which job"),
        ('{"job": "score", "fingerprint": {}}', "has no carry, compared, config, .*units"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(Damaged, match=named):
        open_run(str(tmp_path))


def edited(run: Run, **said: Any) -> str:
    """The run with another record, which says the hash of itself."""
    record = json.loads(store.read(run.path("run.json"))) | said
    store.replace(run.path("run.json"), json.dumps(with_hash(record)).encode())
    return run.uri


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"job": "dream"}, "the run of a job 'dream', .*does not know; .*dlogp_ray 9.8"),
        (
            {"fingerprint": {"schema_version": 4}},
            r"schema 4 of the scores table, .*up to 3; .*wrote it \(dlogp_ray 9\.8\)",
        ),
    ],
)
def test_a_run_of_a_later_version_is_refused_by_name(
    run: Run, said: dict[str, Any], named: str
) -> None:
    uri = edited(run, versions={"dlogp_ray": "9.8"}, **said)
    with pytest.raises(Refused, match=named):
        open_run(uri)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"units": {"count": "many"}}, r"not the record of a score run: units\.count: .*integer"),
        ({"compared": None}, r"not the record of a score run: compared: "),
        ({"fingerprint": {"schema_version": "new"}}, "not the record of a score run: .*'new'"),
    ],
)
def test_a_record_of_another_form_is_damage_by_the_name_of_its_key(
    run: Run, said: dict[str, Any], named: str
) -> None:
    uri = edited(run, **said)
    with pytest.raises(Damaged, match=named):
        open_run(uri)


def test_a_run_begins_once_and_is_joined_after_that(tmp_path: Path) -> None:
    uri = str(tmp_path / "r")
    assert find_run(uri) is None
    first = make_run(uri)
    written = store.read(f"{uri}/run.json")
    info = first.info.model_copy(update={"created": "later"})
    again = begin_run(uri, info, {"units.parquet": b"other units"})
    assert again.info == first.info
    assert store.read(f"{uri}/run.json") == written
    assert store.read(f"{uri}/units.parquet") == b"units"
    assert open_run(uri + "/").info == first.info
    assert find_run(uri) == first


def test_there_must_be_a_run_to_open(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"there is no run there \(no run\.json\)"):
        open_run(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (FINGERPRINT | {"temperature": 0.7}, "temperature: the run has 1.0, now 0.7"),
        (
            FINGERPRINT | {"policies": {"base": {"dtype": "float32"}, "rl": {}}},
            'policies base dtype: the run has "bfloat16", now "float32"',
        ),
        (FINGERPRINT | {"seed": 1}, "seed: the run has none, now 1"),
        ({"policies": FINGERPRINT["policies"]}, "temperature: the run has 1.0, now none"),
    ],
)
def test_another_fingerprint_is_refused_by_its_key(
    given: dict[str, Any], named: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "r")
    with pytest.raises(FingerprintMismatch) as caught:
        begin_run(run.uri, score_info(9, {"fingerprint": given}), {})
    assert named in str(caught.value)
    assert str(caught.value).count("\n") == 2  # one difference, one line; then what to do
    assert caught.value.exit_code == ExitCode.MISMATCH == 5


def test_the_same_fingerprint_passes_in_any_form_that_json_makes_equal(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    reordered = dict(reversed(FINGERPRINT.items()))
    check_fingerprint(run, reordered)
    recorded = json.loads(json.dumps({"files": [("a", 1)]}))
    tuples = Run("r", score_info(1, {"fingerprint": recorded}))
    check_fingerprint(tuples, {"files": [("a", 1)]})


@pytest.mark.parametrize("sealed", [False, True])
def test_the_views(sealed: bool, run: Run) -> None:
    if sealed:
        seal(run)
    assert run.sealed is sealed
    # delta 0.5 - 1.0 + 2.0 over three tokens
    assert run.sql("SELECT count(*), sum(delta_logp) FROM tokens").fetchall() == [(3, 1.5)]
    assert run.sql("SELECT count(*) FROM scores").fetchall() == [(3,)]
    assert run.sql("SELECT sample_id, status, error FROM rejected").fetchall() == [
        ("s1", "too_long", "expected less")
    ]
    by_token = run.sql(
        "SELECT sample_id, position, token_id, delta_logp, level FROM tokens ORDER BY ALL"
    )
    assert by_token.fetchall() == [
        ("s0", 0, 2, 0.5, 5),
        ("s0", 1, 3, -1.0, 5),
        ("s2", 0, 2, 2.0, 5),
    ]
    # what the job did not compute is there, and null
    assert run.sql("SELECT DISTINCT js FROM tokens").fetchall() == [(None,)]


def test_a_run_in_a_store_has_the_same_views(bucket: str) -> None:
    run = make_run(f"{bucket}/r")
    put_unit(run, 0, FIRST)
    put_unit(run, 1, SECOND)
    assert run.sql("SELECT count(*), sum(delta_logp) FROM tokens").fetchall() == [(3, 1.5)]
    assert seal(run).totals()["rows"] == 3
    assert len(run.dataset().to_table()) == 3


def test_an_empty_run_has_empty_views(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    for view in ("scores", "tokens", "rejected"):
        assert run.sql(f"SELECT * FROM {view}").fetchall() == []
    assert run.dataset().to_table().equals(run.schema.empty_table())
    assert run.totals() == {
        "units": 0,
        "rows": 0,
        "tokens": 0,
        "status": {},
        "duplicate_sample_ids": 0,
    }


def test_the_dataset_is_the_objects(run: Run) -> None:
    dataset = run.dataset("scores")
    assert dataset.schema.equals(scores_schema({"level": "int64"}))
    assert dataset.to_table()["sample_id"].to_pylist() == ["s0", "s1", "s2"]
    with pytest.raises(Refused, match=r"expected table 'scores', got 'tokens'"):
        run.dataset("tokens")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('{run}/../beside.txt')",
        "SELECT * FROM '{run}-2/run.json'",
        "SET enable_external_access = true",
        "SELECT nothing FROM tokens",
        "SELEKT 1",
        "",
    ],
)
def test_a_query_sees_the_run_and_nothing_else(query: str, run: Run) -> None:
    (Path(run.uri).parent / "beside.txt").write_text("secret")
    make_run(f"{run.uri}-2")
    with pytest.raises(Refused):
        run.sql(query.format(run=run.uri)).fetchall()


@pytest.fixture(params=["disk", "s3"])
def sealed_anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """A sealed run of two units in either store."""
    on_disk = request.param == "disk"
    place = str(tmp_path / "confined") if on_disk else request.getfixturevalue("bucket")
    run = make_run(f"{place}/r")
    put_unit(run, 0, FIRST)
    put_unit(run, 1, SECOND)
    return seal(run)


SECRET = "HUSHHUSH"


def test_no_function_of_duckdb_reads_a_file_beside_the_run(
    sealed_anywhere: Run, tmp_path: Path
) -> None:
    secret, beside = tmp_path / "secret.csv", f"{sealed_anywhere.uri.rpartition('/')[0]}/secret.csv"
    secret.write_text(f"{SECRET}\n{SECRET}\n")
    store.replace(beside, secret.read_bytes())
    connection = confined(sealed_anywhere, "SELECT 1")
    found = connection.sql(
        "SELECT DISTINCT function_name, function_type IN ('scalar', 'macro') "
        "FROM duckdb_functions() WHERE function_type <> 'aggregate'"
    ).fetchall()
    assert len(found) > 500
    assert {"read_text", "read_csv", "glob", "sniff_csv", "parquet_schema"} <= {n for n, _ in found}
    reached = 0
    for name, is_scalar in found:
        for path in (str(secret), f"file://{secret}", beside, f"{tmp_path}/*.csv"):
            for argument in (f"'{path}'", f"['{path}']"):
                call = f'"{name}"({argument})'
                query = f"SELECT {call}" if is_scalar else f"SELECT * FROM {call}"
                try:
                    rows = str(connection.sql(query).fetchall())
                except duckdb.Error:
                    continue
                reached += 1
                assert SECRET not in rows, query
                # What it was given, a function may give back.
                assert is_scalar or "secret.csv" not in rows.replace(path, ""), query
    assert reached > 20


def test_a_query_reads_no_folder_of_the_one_who_asks(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB's own default for what it spills, which it may read, is .tmp there."""
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp/secret.csv").write_text(SECRET)
    monkeypatch.chdir(tmp_path)
    for path in (".tmp/secret.csv", f"{tmp_path}/.tmp/secret.csv", ".tmp/*"):
        with pytest.raises(Refused):
            run.sql(f"SELECT * FROM read_text('{path}')").fetchall()


def test_no_setting_shows_where_someone_is_at_home(run: Run) -> None:
    for query in ("SELECT * FROM duckdb_settings()", "SELECT current_setting('secret_directory')"):
        rows = str(run.sql(query).fetchall())
        assert str(Path.home()) not in rows
        assert str(Path.cwd()) not in rows


@pytest.mark.parametrize(
    "query",
    [
        "SELECT error('x')",
        "SELECT error('x') FROM tokens",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM force_checkpoint()",
        "SELECT strptime(sample_id, '%Y') FROM scores",
        "SELECT regexp_extract(sample_id, '(') FROM scores",
        "SELECT sample_id::int FROM scores",
        "SELECT (SELECT sample_id FROM scores)",
    ],
)
def test_what_a_query_does_wrong_is_no_damage(query: str, run: Run) -> None:
    with pytest.raises(Refused, match="the query failed"), rows_read(run):
        run.sql(query).fetchall()


def test_a_bit_that_flips_in_a_page_is_seen_by_who_reads_the_dataset(run: Run) -> None:
    path = Path(run.object_uri("part-00000000"))
    group = pq.read_metadata(path).row_group(0)
    (column,) = (
        c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith("js.")
    )
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        run.dataset().to_table()


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_an_object_that_cant_be_read_is_damage(share: float, run: Run) -> None:
    """Zeros in its pages, where DuckDB sees them: it does not look at their checksums."""
    path = Path(run.object_uri("part-00000000"))
    data = bytearray(path.read_bytes())
    at = int(share * len(data))
    data[at : at + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(Damaged, match="dlogp verify"), rows_read(run):
        run.sql("SELECT * FROM scores").fetchall()


@pytest.mark.parametrize(
    "query",
    [
        "ATTACH '/tmp/a.db'",
        "COPY (SELECT 1) TO '/tmp/dlogp-leak.csv'",
        "COPY (SELECT 1) TO '{run}/leak.csv'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CREATE SECRET s (TYPE s3)",
        "SELECT * FROM duckdb_secrets()",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
        "SELECT * FROM 's3://other/x.parquet'",
        "EXPORT DATABASE '/tmp/leak'",
        "SELECT 1; ATTACH '/tmp/a.db'",
    ],
)
def test_a_query_leaves_its_run_by_no_statement(query: str, sealed_anywhere: Run) -> None:
    run = sealed_anywhere
    with pytest.raises((Refused, duckdb.PermissionException)):
        run.sql(query.format(run=run.uri)).fetchall()
    assert [name for name, _ in store.list_objects(run.uri) if "leak" in name] == []


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT 1) TO '{run}/../out.csv'",
        "COPY (SELECT 1) TO '{run}/out.csv'",
        "COPY (SELECT 1) TO '{run}/scores/part-00000000.parquet'",
        "SELECT 1; COPY (SELECT 1) TO '{run}/out.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{run}/out.csv'",
        "ATTACH '{run}/a.db'",
        "CREATE TABLE a AS SELECT 1",
        "SELECT 1; SELECT 2",
        "DROP VIEW scores",
    ],
)
def test_a_query_writes_nothing(query: str, run: Run) -> None:
    def everything() -> dict[Path, bytes]:
        files = (path for path in Path(run.uri).parent.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    before = everything()
    with pytest.raises(Refused, match="expected one query that returns rows"):
        run.sql(query.format(run=run.uri))
    assert everything() == before


def test_totals_are_those_of_the_footers_until_the_seal(run: Run) -> None:
    # 3 rows of which s1 is rejected; 2 + 0 + 1 tokens
    totals = {
        "units": 2,
        "rows": 3,
        "tokens": 3,
        "status": {"ok": 2, "too_long": 1},
        "duplicate_sample_ids": 0,
    }
    assert run.totals() == totals
    sealed = seal(run).totals()
    hashes = {
        f"{name}_sha256": hashlib.sha256(Path(run.path(file)).read_bytes()).hexdigest()
        for name, file in (("run", "run.json"), ("manifest", "manifest.parquet"))
    }
    own = {"sha256": record_hash(sealed)}
    assert sealed == totals | {"units_missing": 0, "version": 1} | hashes | own
    assert json.loads(store.read(run.path("_SUCCESS"))) == run.totals()


def test_special_tokens_of_text_rows_add_up_where_footers_have_them(run: Run) -> None:
    """Those of schema 1 have none, nor have manifests of that time."""
    table = pa.Table.from_pylist(FIRST, schema=scores_schema({"level": "int64"}))
    put_object(run, 0, table, special_tokens={"bos_there": 2})
    assert run.totals()["special_tokens"] == {"bos_there": 2}
    seal(run)
    manifest = run.manifest()
    assert list(map(dict, manifest["special_tokens"].to_pylist())) == [{"bos_there": 2}, {}]
    assert run.totals()["special_tokens"] == {"bos_there": 2}
    assert "special_tokens" not in totals(manifest.drop_columns("special_tokens"))


def test_the_manifest_describes_every_object(run: Run) -> None:
    rows = seal(run).manifest().to_pylist()
    sizes = [os.path.getsize(run.object_uri(f"part-0000000{index}")) for index in (0, 1)]
    assert [row["unit"] for row in rows] == ["part-00000000", "part-00000001"]
    assert [row["rows"] for row in rows] == [2, 1]
    assert [row["tokens"] for row in rows] == [2, 1]
    assert [dict(row["status"]) for row in rows] == [{"ok": 1, "too_long": 1}, {"ok": 1}]
    assert [row["size_bytes"] for row in rows] == sizes
    schema = scores_schema({"level": "int64"})
    assert [row["content_hash"] for row in rows] == [
        content_hash(pa.Table.from_pylist(unit, schema=schema)) for unit in (FIRST, SECOND)
    ]
    assert [row["duplicate_sample_ids"] for row in rows] == [[], []]


def test_a_manifest_that_is_missing_is_named(run: Run) -> None:
    sealed = seal(run)
    Path(sealed.path("manifest.parquet")).unlink()
    for read in (sealed.manifest, sealed.objects, lambda: sealed.sql("SELECT 1 FROM scores")):
        with pytest.raises(Damaged, match=r"sealed, and its manifest\.parquet is missing"):
            read()


def test_a_sealed_run_stays_as_it_is(run: Run) -> None:
    manifest = seal(run).manifest()
    put_unit(run, 2, [scored("s9", [1.0])])
    assert seal(run).manifest().equals(manifest)
    assert run.sql("SELECT count(*) FROM scores").fetchall() == [(3,)]


def test_ids_in_several_units_are_found(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", units=3)
    two_policies = [scored("a", [1.0]), scored("a", [2.0], policy="later")]
    put_unit(run, 0, [*two_policies, scored("b", [1.0]), scored(None, [1.0])])  # type: ignore[arg-type]
    put_unit(run, 1, [scored("b", [1.0]), rejected("c"), scored(None, [1.0])])  # type: ignore[arg-type]
    put_unit(run, 2, [scored("c", [1.0]), scored("b", [1.0])])
    # a stands twice in one unit, once for each policy; no id is no duplicate
    found = {"part-00000000": ["b"], "part-00000001": ["b", "c"], "part-00000002": ["b", "c"]}
    assert duplicate_sample_ids(run, run.committed()) == found
    seal(run)
    assert run.totals()["duplicate_sample_ids"] == 2
    manifest = run.manifest().to_pylist()
    assert {row["unit"]: row["duplicate_sample_ids"] for row in manifest} == found


def test_a_run_with_missing_units_is_sealed_only_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", units=3)
    put_unit(run, 0, FIRST)
    with pytest.raises(Refused, match=r"2 of 3 units are missing"):
        seal(run)
    assert not run.sealed
    assert seal(run, partial=True).totals()["units_missing"] == 2
    assert len(run.manifest()) == 1


def test_a_seal_that_was_interrupted_describes_what_is_there_at_the_end(run: Run) -> None:
    # a partial seal died between manifest and marker, and the run went on
    seal(run)
    os.remove(run.path("_SUCCESS"))
    put_unit(run, 2, [scored("s9", [1.0])])
    seal(run, partial=True)
    assert run.totals()["rows"] == sum(run.manifest()["rows"].to_pylist()) == 4


def test_failures_are_read_back(run: Run) -> None:
    store.replace(run.path("failed/part-00000001.json"), b'{"cause": "out of memory"}')
    assert run.failures() == {"part-00000001": {"cause": "out of memory"}}


def test_an_object_is_a_plain_parquet_file(run: Run) -> None:
    table = pq.read_table(run.object_uri("part-00000000"))
    assert table["delta_logp"].to_pylist() == [[0.5, -1.0], []]


def test_a_file_that_was_changed_is_told_by_the_times(tmp_path: Path) -> None:
    """1_700_000_000 s is 2023-11-14 22:13:20 UTC."""

    def of(version: str) -> dict[str, Any]:
        return {"corpus": {"/c.jsonl": {"size_bytes": 1, "version": version}}}

    stored = Run("r", score_info(1, {"fingerprint": of("1700000000000000005")}))
    with pytest.raises(FingerprintMismatch) as caught:
        check_fingerprint(stored, of("1700000060000000000"))
    told = "corpus /c.jsonl: changed at 2023-11-14 22:13:20.000000005 UTC when the run began, "
    assert f"{told}now at 2023-11-14 22:14:20.000000000 UTC" in str(caught.value)
    with pytest.raises(FingerprintMismatch, match=r'/c.jsonl version: .*now "9a0364b9e99bb480'):
        check_fingerprint(stored, of("9a0364b9e99bb480dd25e1f0284c8555"))


def test_a_sealed_run_without_its_record_is_damaged_not_absent(tmp_path: Path, run: Run) -> None:
    seal(run)
    Path(run.uri, "run.json").unlink()
    with pytest.raises(Damaged, match=r"is sealed, and its run\.json is gone; put it back"):
        open_run(run.uri)
    with pytest.raises(Refused, match="there is no run there"):
        open_run(str(tmp_path / "nowhere"))
