"""What a job is made from changes while it runs: nothing comes of that, and the cause is named."""

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stub_policies
from conftest import contents, make_adapter, make_rows, write_jsonl
from run_records import footer_of
from typer.testing import CliRunner

import dlogp_ray
from dlogp_ray import store
from dlogp_ray.analysis.overview import overview
from dlogp_ray.cli import app
from dlogp_ray.config import ScoreConfig
from dlogp_ray.errors import (
    Damaged,
    DlogpError,
    FingerprintMismatch,
    InputChanged,
    Refused,
    StoreFailed,
    Unanswered,
)
from dlogp_ray.tables.encoding import encode_object
from dlogp_ray.tables.verification import report, verify

MakeConfig = Callable[..., ScoreConfig]
ROWS = 120


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_policies.install(monkeypatch.setattr)


def corpus_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=len(rows) // 4)
        return path
    return write_jsonl(path, rows)


@pytest.fixture
def disturbed(make_config: MakeConfig, tmp_path: Path) -> Callable[..., ScoreConfig]:
    """A job of 120 rows of which one runs a script: of ``{corpus}``, ``{run}`` and ``{aside}``."""

    def make(script: str, ending: str = "jsonl", at: int = 20, **fields: Any) -> ScoreConfig:
        path, code = tmp_path / f"corpus.{ending}", tmp_path / "mischief.py"
        rows = make_rows(ROWS)
        rows[at]["generator"] = f"runs once: {code}"
        config = make_config(corpus=str(corpus_of(path, rows)), **fields)
        places = {"corpus": path, "run": config.run_uri, "aside": tmp_path / "aside"}
        code.write_text(
            "import os, shutil\nfrom pathlib import Path\n"
            + "".join(f"{name} = Path({str(place)!r})\n" for name, place in places.items())
            + script
        )
        return config

    return make


EDITED = "data = corpus.read_bytes(); corpus.write_bytes(data.replace(b's1', b's9'))"
CUT = "lines = corpus.read_bytes().splitlines(True); corpus.write_bytes(b''.join(lines[:90]))"
REPLACED = "aside.write_bytes(corpus.read_bytes()[:-1] + b'}'); os.replace(aside, corpus)"
FEWER_ROWS = (
    "import pyarrow.parquet as pq; rows = pq.read_table(corpus);"
    "pq.write_table(rows.slice(0, 60), corpus)"
)
GONE = "corpus.unlink()"
TIME_SET_BACK = f"times = corpus.stat(); {EDITED};" + (
    "os.utime(corpus, ns=(times.st_atime_ns, times.st_mtime_ns))"
)
A_PIPE = f"{GONE}; os.mkfifo(corpus)"
UNSEEN = (GONE, A_PIPE, TIME_SET_BACK)
"""Whereof the next call does not say that the corpus is another one."""


@pytest.fixture
def where(request: pytest.FixtureRequest) -> str:
    """The parameter; with the tests' own Ray where it says so."""
    if request.param == "ray":
        request.getfixturevalue("ray_session")
    return str(request.param)


@pytest.mark.parametrize(
    ("script", "ending"),
    [
        (EDITED, "jsonl"),
        (CUT, "jsonl"),
        (REPLACED, "jsonl"),
        (GONE, "jsonl"),
        (A_PIPE, "jsonl"),
        (TIME_SET_BACK, "jsonl"),
        (FEWER_ROWS, "parquet"),
        (GONE, "parquet"),
    ],
)
@pytest.mark.usefixtures("stubs")
def test_a_corpus_that_changes_while_it_is_scored_fails_the_units_that_are_left(
    script: str, ending: str, disturbed: Callable[..., ScoreConfig]
) -> None:
    job = disturbed(script, ending)
    corpus = Path(job.corpus[0].path)
    before, times = corpus.read_bytes(), corpus.stat()
    result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.sealed) == (4, False)
    assert result.units_failed
    for cause in result.units_failed.values():
        assert "corpus_changed" in cause
        assert str(corpus) in cause
        assert "Put it back as it was" in cause
    assert result.units_done + len(result.units_failed) == result.units
    if script not in UNSEEN:
        with pytest.raises(FingerprintMismatch, match=r"corpus .*: changed at .*, now at"):
            dlogp_ray.score(job, progress=False)

    if script == A_PIPE:
        corpus.unlink()
    corpus.write_bytes(before)
    os.utime(corpus, ns=(times.st_atime_ns, times.st_mtime_ns))
    mended = dlogp_ray.score(job, progress=False)
    assert (mended.exit_code, mended.sealed) == (0, True)
    untroubled = dlogp_ray.score(job.model_copy(update={"run_id": "other"}), progress=False)
    assert contents(mended.run) == contents(untroubled.run)


@pytest.mark.ray
@pytest.mark.usefixtures("stubs", "ray_session")
def test_a_corpus_that_changes_before_other_processes_read_it_fails_all_units(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlogp_ray.pipelines.score import plan as planning

    path = write_jsonl(tmp_path / "c.jsonl", make_rows(60))
    probe = planning.probe

    def later(*arguments: Any, **more: Any) -> Any:
        os.utime(path)
        return probe(*arguments, **more)

    monkeypatch.setattr(planning, "probe", later)
    result = dlogp_ray.score(make_config(corpus=str(path), run_on="ray"), progress=False)
    assert (result.exit_code, result.units_done) == (4, 0)
    assert len(result.units_failed) == result.units
    assert all("corpus_changed" in cause for cause in result.units_failed.values())


def test_a_corpus_that_changes_while_it_is_planned_is_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlogp_ray.pipelines.score import plan as planning

    path = write_jsonl(tmp_path / "c.jsonl", make_rows(10))
    plain = planning.cut_units

    def later(*arguments: Any) -> Any:
        write_jsonl(path, make_rows(9))
        return plain(*arguments)

    monkeypatch.setattr(planning, "cut_units", later)
    with pytest.raises(InputChanged, match=r"corpus_changed: .*c\.jsonl has"):
        dlogp_ray.score(make_config(corpus=str(path)), progress=False)


MOVED = "shutil.move(run, aside)"
DELETED = "shutil.rmtree(run)"
ONE_DELETED = "next((run / 'scores').glob('part-*')).unlink()"


@pytest.mark.parametrize(
    ("script", "where"),
    [(MOVED, "here"), (DELETED, "here"), pytest.param(MOVED, "ray", marks=pytest.mark.ray)],
    indirect=["where"],
)
@pytest.mark.usefixtures("stubs")
def test_a_run_that_is_moved_away_has_not_ended_well(
    script: str,
    where: str,
    disturbed: Callable[..., ScoreConfig],
) -> None:
    job = disturbed(script, run_on=where)
    with pytest.raises(StoreFailed, match=r"run\.json is gone") as raised:
        dlogp_ray.score(job, progress=False)
    assert raised.value.exit_code == 4


@pytest.mark.usefixtures("stubs")
def test_an_object_that_is_deleted_meanwhile_is_missed(
    disturbed: Callable[..., ScoreConfig],
) -> None:
    job = disturbed(ONE_DELETED, at=90)
    result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.sealed) == (4, False)
    ((unit, cause),) = result.units_failed.items()
    assert "its object was there and is gone" in cause
    again = dlogp_ray.score(job, progress=False)
    assert (again.exit_code, again.sealed, again.units_scored) == (0, True, 1)
    assert unit in contents(again.run)


# ---- What lies in a run and is not of it.


@pytest.fixture
def half(make_config: MakeConfig, tmp_path: Path) -> ScoreConfig:
    """A job that ended with a unit missing; beside it, ``other``: of other rows."""
    rows = make_rows(ROWS)
    rows[60]["generator"] = f"fails once: {tmp_path / 'flag'}"
    job = make_config(corpus=str(write_jsonl(tmp_path / "c.jsonl", rows)))
    other = write_jsonl(tmp_path / "o.jsonl", make_rows(ROWS, seed=1))
    theirs = make_config(corpus=str(other), run_id="other")
    assert dlogp_ray.score(theirs, progress=False).exit_code == 0
    return job


def begun(job: ScoreConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its run, with a unit that failed."""
    with monkeypatch.context() as patch:
        patch.setitem(stub_policies.TROUBLE, "fails once", stub_policies.TROUBLE["fails"])
        assert dlogp_ray.score(job, progress=False).exit_code == 4
    return Path(job.run_uri)


def another_runs_object(run: Path) -> str:
    theirs = sorted((run.parent / "other/scores").iterdir())[0]
    shutil.copy(theirs, run / "scores" / theirs.name)
    return "was made from something else than this run"


def another_units_object(run: Path) -> str:
    first, second = sorted((run / "scores").iterdir())[:2]
    shutil.copy(first, second)
    return "its footer says that it is of unit"


def rows_written_again(run: Path) -> str:
    """With another value among them, and the footer's values as they were."""
    path = sorted((run / "scores").iterdir())[0]
    table = pq.read_table(path)
    changed = table["source_offset"].to_pylist()
    changed[0] += 1
    at = table.schema.get_field_index("source_offset")
    pq.write_table(table.set_column(at, table.schema.field(at), [changed]), path)
    return "it was written again by something else"


def another_runs_units(run: Path) -> str:
    shutil.copy(run.parent / "other/units.parquet", run / "units.parquet")
    return r"units\.parquet has SHA-256"


def record_edited(run: Path) -> str:
    info = json.loads((run / "run.json").read_text())
    info["engine"]["token_budget"] = 77
    (run / "run.json").write_text(json.dumps(info))
    return r"run\.json is not as the run began"


def record_without_its_hash(run: Path) -> str:
    info = json.loads((run / "run.json").read_text())
    del info["sha256"]
    (run / "run.json").write_text(json.dumps(info | {"noise": {"texts": 1}}))
    return r"run\.json has no hash of itself any more"


def an_object_that_is_no_parquet_inside(run: Path) -> str:
    path = sorted((run / "scores").iterdir())[0]
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    return "dlogp verify .* names the object"


def another_runs_record(run: Path) -> str:
    shutil.copy(run.parent / "other/run.json", run / "run.json")
    return "was made from something else"


@pytest.mark.parametrize(
    "mischief",
    [
        another_runs_object,
        another_units_object,
        rows_written_again,
        another_runs_units,
        record_edited,
        record_without_its_hash,
        an_object_that_is_no_parquet_inside,
        another_runs_record,
    ],
)
@pytest.mark.usefixtures("stubs")
def test_what_is_not_of_the_run_is_not_taken_in(
    mischief: Callable[[Path], str], half: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(half, monkeypatch)
    expected = mischief(run)
    with pytest.raises(DlogpError, match=expected) as raised:
        dlogp_ray.score(half, progress=False)
    assert raised.value.exit_code in (5, 6)
    assert not (run / "_SUCCESS").exists()


@pytest.mark.parametrize(
    "mischief", [another_runs_object, another_units_object, rows_written_again]
)
@pytest.mark.usefixtures("stubs")
def test_an_open_run_is_read_without_what_is_not_its_own(
    mischief: Callable[[Path], str], half: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(half, monkeypatch)
    expected = mischief(run)
    opened = dlogp_ray.open_run(str(run))
    for read in (
        lambda: opened.sql("SELECT count(*) FROM scores"),
        opened.dataset,
        opened.totals,
        lambda: overview(opened),
    ):
        with pytest.raises(Damaged, match=expected):
            read()


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


@pytest.mark.parametrize("put", [a_folder, a_link_to_nothing, os.mkfifo])
@pytest.mark.usefixtures("stubs")
def test_what_has_the_name_of_an_object_and_is_none_is_told(
    put: Callable[[Path], None], make_config: MakeConfig, tmp_path: Path
) -> None:
    job = make_config(corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(60))))
    run = dlogp_ray.score(job, progress=False).run
    before = contents(run)
    path = sorted(Path(run, "scores").iterdir())[1]
    path.unlink()
    put(path)
    done = CliRunner().invoke(app, ["verify", run, "--repair", "--no-progress"])
    assert isinstance(done.exception, StoreFailed), done.output
    assert done.exception.exit_code == 4
    assert f"{path.stem}: writing: FileExistsError" in str(done.exception)
    assert "move that away" in str(done.exception)
    path.rmdir() if put is a_folder else path.unlink()
    result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.sealed) == (0, True)
    assert contents(run) == before


@pytest.mark.parametrize("other", [{"temperature": 0.7}, {"carry": ["reward_2"]}])
@pytest.mark.usefixtures("stubs")
def test_another_runs_record_is_put_back_not_scored_by(
    other: dict[str, Any], make_config: MakeConfig, tmp_path: Path
) -> None:
    rows = [row | {"reward_2": 1.0} for row in make_rows(60)]
    corpus = str(write_jsonl(tmp_path / "c.jsonl", rows))
    run = dlogp_ray.score(make_config(corpus=corpus), progress=False).run
    warm = make_config(corpus=corpus, run_id="other", **other)
    dlogp_ray.score(warm, progress=False)
    record = Path(run, "run.json").read_bytes()
    shutil.copy(Path(warm.run_uri, "run.json"), run)
    done = CliRunner().invoke(app, ["verify", run, "--repair", "--no-progress"])
    assert isinstance(done.exception, Refused), done.output
    assert "is of another run: all" in str(done.exception)
    Path(run, "run.json").write_bytes(record)
    assert verify(dlogp_ray.open_run(run)) == []


@pytest.mark.usefixtures("stubs")
def test_the_list_of_units_of_a_sealed_run_is_asked_for(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    job = make_config(corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(60))))
    Path(dlogp_ray.score(job, progress=False).run, "units.parquet").unlink()
    with pytest.raises(Damaged, match=r"units\.parquet is missing"):
        dlogp_ray.score(job, progress=False)


@pytest.mark.usefixtures("stubs")
def test_a_foreign_object_is_found_and_repaired(
    half: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlogp_ray.pipelines.repair import repair

    run = begun(half, monkeypatch)
    another_runs_object(run)
    opened = dlogp_ray.open_run(str(run))
    problems = verify(opened)
    assert any("made from something else" in str(problem) for problem in problems)
    assert repair(opened, problems, progress=False).exit_code == 0
    assert verify(dlogp_ray.open_run(str(run))) == []


# ---- What reads a sealed run.


def other_content(path: Path) -> None:
    """The object of another unit in its place."""
    shutil.copy(sorted(path.parent.iterdir())[0], path)


def touched(path: Path) -> None:
    path.write_bytes(path.read_bytes())


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def manifest_of(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], str]:
    def do(run: Path) -> str:
        path = run / "manifest.parquet"
        table = pq.read_table(path)
        pq.write_table(change(table), path, write_page_checksum=True)
        return r"manifest\.parquet is another one than the run was sealed with"

    return do


def seal_of(change: Callable[[dict[str, Any]], object], expected: str) -> Callable[[Path], str]:
    def do(run: Path) -> str:
        path = run / "_SUCCESS"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))
        return expected

    return do


def another_runs_seal(run: Path) -> str:
    shutil.copy(run.parent / "other/_SUCCESS", run / "_SUCCESS")
    return r"_SUCCESS is of another run\.json"


def no_seal(run: Path) -> str:
    (run / "_SUCCESS").write_bytes(b"")
    return "_SUCCESS can't be read"


@pytest.mark.parametrize(
    "mischief",
    [
        manifest_of(lambda table: table.slice(0, 2)),
        manifest_of(lambda table: pa.concat_tables([table, table.slice(1, 1)])),
        seal_of(lambda found: found.update(rows=found["rows"] + 1), "is not as it was written"),
        seal_of(dict.clear, "_SUCCESS has no"),
        another_runs_seal,
        no_seal,
    ],
    ids=["rows cut", "a row twice", "totals edited", "no totals", "another's", "empty"],
)
@pytest.mark.usefixtures("stubs")
def test_a_seal_is_the_runs_own_and_as_it_was_written(
    mischief: Callable[[Path], str], make_config: MakeConfig, tmp_path: Path
) -> None:
    from dlogp_ray.pipelines.repair import repair

    corpus = str(write_jsonl(tmp_path / "c.jsonl", make_rows(60)))
    other = str(write_jsonl(tmp_path / "o.jsonl", make_rows(30, seed=1)))
    dlogp_ray.score(make_config(corpus=other, run_id="other"), progress=False)
    job = make_config(corpus=corpus)
    run = dlogp_ray.score(job, progress=False).run
    before = contents(run)
    expected = mischief(Path(run))
    for read in readers(run, tmp_path / "cache").values():
        with pytest.raises(Damaged, match=expected):
            read()
    with pytest.raises(Damaged, match=expected):
        dlogp_ray.score(job, progress=False)
    problems = verify(dlogp_ray.open_run(run))
    assert any(re.search(expected, str(problem)) for problem in problems)
    assert repair(dlogp_ray.open_run(run), problems, progress=False).exit_code == 0
    assert verify(dlogp_ray.open_run(run)) == []
    assert contents(run) == before


def readers(run: str, cache: Path) -> dict[str, Callable[[], object]]:
    from dlogp_ray.config import ReweightConfig, SparsityConfig
    from dlogp_ray.weights.table import load_logps

    weighed = ReweightConfig.from_mapping(
        {"run": run, "schemes": ["delta"], "policy": "base", "name": "w"}
    )
    return {
        "sparsity": lambda: dlogp_ray.sparsity(SparsityConfig(run=run), progress=False),
        "reweight": lambda: dlogp_ray.reweight(weighed, progress=False),
        "sql": lambda: dlogp_ray.open_run(run).sql("SELECT count(*) FROM scores").fetchall(),
        "dataset": lambda: dlogp_ray.open_run(run).dataset().to_table(),
        "load_logps": lambda: load_logps(run, "base", cache=cache),
        "show": lambda: overview(dlogp_ray.open_run(run)),
    }


@pytest.mark.parametrize("reader", ["sparsity", "reweight", "sql", "dataset", "load_logps", "show"])
@pytest.mark.usefixtures("stubs")
def test_a_sealed_run_is_read_as_its_manifest_lists_it(
    reader: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    job = make_config(corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(60))))
    run = dlogp_ray.score(job, progress=False).run
    path = sorted(Path(run, "scores").iterdir())[1]
    before = path.read_bytes()
    read = readers(run, tmp_path / "cache")[reader]
    other_content(path)
    with pytest.raises(Damaged, match=path.stem):
        read()
    path.write_bytes(before)  # of another time, as a copy of the run has it
    read()


def of_that_size(table: pa.Table, unit: int, size: int) -> bytes:
    """An object of some of the rows, and of that many bytes: a name in its summary fills them."""
    for rows in range(len(table) // 2, 0, -1):
        length = 0
        while len(data := fill(table.slice(0, rows), unit, length)) < size:
            length += max(1, (size - len(data)) // 3)
        if len(data) == size:
            return data
    raise AssertionError(size)


def fill(table: pa.Table, unit: int, length: int) -> bytes:
    return encode_object(table, footer_of(table, unit, summary={"name": "x" * length}))


@pytest.mark.parametrize("time_restored", [False, True])
@pytest.mark.usefixtures("stubs")
def test_another_object_gets_into_no_cache(
    time_restored: bool, make_config: MakeConfig, tmp_path: Path
) -> None:
    """Not even one of its size and its time."""
    from dlogp_ray.weights.table import load_logps

    job = make_config(
        corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(400))), unit_tokens=4_000
    )
    run = dlogp_ray.score(job, progress=False).run
    path = sorted(Path(run, "scores").iterdir())[1]
    before, times = path.read_bytes(), path.stat()
    path.write_bytes(of_that_size(pq.read_table(path), 1, len(before)))
    if time_restored:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(Damaged, match=path.stem):
        load_logps(run, "base", cache=tmp_path / "cache")
    path.write_bytes(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    whole = load_logps(run, "base", cache=tmp_path / "cache")
    rows = dlogp_ray.open_run(run).sql("SELECT sample_id, response_ids, logp_base FROM scores")
    for name, ids, logps in rows.fetchall():
        assert whole.of([name], [ids])[0].tolist() == logps


@pytest.mark.usefixtures("stubs")
def test_a_cache_that_was_changed_is_made_again(make_config: MakeConfig, tmp_path: Path) -> None:
    from dlogp_ray.weights.table import load_logps

    job = make_config(corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(60))))
    run = dlogp_ray.score(job, progress=False).run
    (folder,) = {load_logps(run, "base", cache=tmp_path / "cache").folder}
    values = next(folder.glob("values*"))
    before, times = values.read_bytes(), values.stat()
    values.write_bytes(bytes(len(before)))
    os.utime(values, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = load_logps(run, "base", cache=tmp_path / "cache")
    assert next(again.folder.glob("values*")).read_bytes() == before


# ---- Policies.


@pytest.fixture
def own_policies(policy_folders: dict[str, Path], tmp_path: Path) -> dict[str, str]:
    """Copies that may be changed."""
    return {
        name: str(shutil.copytree(folder, tmp_path / "policies" / name))
        for name, folder in policy_folders.items()
    }


def same_size_and_time(path: Path, change: Callable[[bytearray], None]) -> None:
    times, data = path.stat(), bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def one_bit(data: bytearray) -> None:
    data[-1] ^= 1


def one_exponent(data: bytearray) -> None:
    """Of the last weight: it is another one by far."""
    data[-1] ^= 2


def test_weights_that_are_swapped_after_they_were_hashed_are_not_loaded(
    make_config: MakeConfig,
    own_policies: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dlogp_ray.pipelines.score import actor

    job = make_config(
        corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(20))), policies=own_policies
    )
    weights = Path(own_policies["rl"], "model.safetensors")
    hold = actor.hold_policies

    def later(*arguments: Any, **more: Any) -> Any:
        same_size_and_time(weights, one_bit)
        return hold(*arguments, **more)

    monkeypatch.setattr(actor, "hold_policies", later)
    with pytest.raises(DlogpError, match=r"policy_changed: rl \(.*model\.safetensors") as raised:
        dlogp_ray.score(job, progress=False)
    assert raised.value.exit_code == 5
    assert not Path(job.run_uri, "_SUCCESS").exists()


def in_the_third_unit(do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something while it is scored."""
    from dlogp_ray.pipelines.score import actor

    plain, scored = actor.score_unit, itertools.count(1)

    def meanwhile(*arguments: Any, **more: Any) -> Any:
        if next(scored) == 3:
            do()
        return plain(*arguments, **more)

    monkeypatch.setattr(actor, "score_unit", meanwhile)


def test_weights_that_are_overwritten_in_their_place_spoil_no_unit(
    make_config: MakeConfig,
    own_policies: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In memory they are pages of the file: the others of the run would be of other weights."""
    corpus = str(write_jsonl(tmp_path / "c.jsonl", make_rows(60)))
    job = make_config(corpus=corpus, policies=own_policies)
    weights = Path(own_policies["rl"], "model.safetensors")

    def zeros(data: bytearray) -> None:
        data[-4096:] = bytes(4096)

    in_the_third_unit(lambda: same_size_and_time(weights, zeros), monkeypatch)
    result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.sealed, result.units_done) == (4, False, 2)
    causes = set(result.units_failed.values())
    assert all("policy_changed: rl" in cause and "overwritten" in cause for cause in causes)


def test_weights_that_another_file_replaces_are_scored_to_the_end(
    make_config: MakeConfig,
    own_policies: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a trainer writes the next checkpoint: what is loaded stays what it was."""
    corpus = str(write_jsonl(tmp_path / "c.jsonl", make_rows(60)))
    job = make_config(corpus=corpus, policies=own_policies)
    weights = Path(own_policies["rl"], "model.safetensors")
    before = weights.read_bytes()

    def replace() -> None:
        new = weights.with_name("new")
        new.write_bytes(bytes(len(before)))
        new.rename(weights)

    with monkeypatch.context() as patch:
        in_the_third_unit(replace, patch)
        result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.sealed) == (0, True)
    weights.write_bytes(before)
    untroubled = dlogp_ray.score(job.model_copy(update={"run_id": "other"}), progress=False)
    assert contents(result.run) == contents(untroubled.run)


def test_a_tokenizer_that_is_swapped_after_it_was_hashed_is_not_used(
    make_config: MakeConfig,
    own_policies: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dlogp_ray.pipelines.score import plan as planning

    rows = [{"sample_id": str(i), "prompt": "1+1", "response": "=2"} for i in range(20)]
    job = make_config(corpus=str(write_jsonl(tmp_path / "c.jsonl", rows)), policies=own_policies)
    probe = planning.probe

    def later(*arguments: Any, **more: Any) -> Any:
        found = probe(*arguments, **more)
        path = Path(own_policies["rl"], "tokenizer.json")
        same_size_and_time(path, lambda data: data.__setitem__(-1, ord(" ")))
        return found

    monkeypatch.setattr(planning, "probe", later)
    from dlogp_ray.pipelines.run import policies

    policies.text_tokenizer.cache_clear()
    monkeypatch.setattr(planning, "sample_units", lambda units: [])
    result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.units_done) == (4, 0)
    assert all("policy_changed: rl" in cause for cause in result.units_failed.values())


@pytest.mark.parametrize(
    ("loader", "file"),
    [("AutoModelForCausalLM", "model.safetensors"), ("AutoTokenizer", "tokenizer.json")],
)
def test_a_name_that_is_anothers_while_it_is_loaded_changes_nothing(
    loader: str,
    file: str,
    make_config: MakeConfig,
    own_policies: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And is put back before anybody looks again."""
    import transformers

    rows = [{"sample_id": str(i), "prompt": "1+1", "response": "=2"} for i in range(20)]
    corpus = str(write_jsonl(tmp_path / "c.jsonl", rows))
    job = make_config(corpus=corpus, policies=own_policies)
    name, mine = Path(own_policies["rl"], file), tmp_path / "mine"
    name.rename(mine)
    name.symlink_to(mine)
    untroubled = dlogp_ray.score(job.model_copy(update={"run_id": "other"}), progress=False)
    other = tmp_path / "other"
    data = bytearray(mine.read_bytes())
    one_exponent(data)
    other.write_bytes(b"{}" if file == "tokenizer.json" else data)
    plain, loaded = getattr(transformers, loader).from_pretrained, []

    def meanwhile(folder: Path, *arguments: Any, **more: Any) -> Any:
        name.unlink()
        name.symlink_to(other)
        loaded.append(folder)
        try:
            return plain(folder, *arguments, **more)
        finally:
            name.unlink()
            name.symlink_to(mine)

    monkeypatch.setattr(getattr(transformers, loader), "from_pretrained", meanwhile)
    result = dlogp_ray.score(job, progress=False)
    assert loaded
    assert (result.exit_code, result.sealed) == (0, True)
    assert contents(result.run) == contents(untroubled.run)


def test_an_adapter_whose_name_is_anothers_while_it_is_loaded_changes_nothing(
    make_config: MakeConfig,
    own_policies: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import peft.utils

    adapter = make_adapter(tmp_path / "adapter", Path(own_policies["base"]))
    job = make_config(
        corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(20))),
        policies={"base": own_policies["base"], "rl": {"adapter": str(adapter)}},
    )
    name, mine, other = (
        folder / "adapter_model.safetensors" for folder in (adapter, tmp_path, tmp_path / "other")
    )
    name.rename(mine)
    name.symlink_to(mine)
    untroubled = dlogp_ray.score(job.model_copy(update={"run_id": "other"}), progress=False)
    data = bytearray(mine.read_bytes())
    one_exponent(data)
    other.parent.mkdir()
    other.write_bytes(data)
    plain, loaded = peft.utils.load_peft_weights, []

    def meanwhile(folder: str, *arguments: Any, **more: Any) -> Any:
        name.unlink()
        name.symlink_to(other)
        loaded.append(folder)
        try:
            return plain(folder, *arguments, **more)
        finally:
            name.unlink()
            name.symlink_to(mine)

    monkeypatch.setattr(peft.utils, "load_peft_weights", meanwhile)
    result = dlogp_ray.score(job, progress=False)
    assert loaded
    assert (result.exit_code, result.sealed) == (0, True)
    assert contents(result.run) == contents(untroubled.run)


def test_an_adapter_that_is_swapped_after_it_was_hashed_is_not_loaded(
    make_config: MakeConfig,
    own_policies: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dlogp_ray.pipelines.score import actor

    adapter = make_adapter(tmp_path / "adapter", Path(own_policies["base"]))
    job = make_config(
        corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(20))),
        policies={"base": own_policies["base"], "rl": {"adapter": str(adapter)}},
    )
    hold = actor.hold_policies

    def later(*arguments: Any, **more: Any) -> Any:
        same_size_and_time(adapter / "adapter_model.safetensors", one_bit)
        return hold(*arguments, **more)

    monkeypatch.setattr(actor, "hold_policies", later)
    with pytest.raises(DlogpError, match=r"policy_changed: rl \(.*adapter_model") as raised:
        dlogp_ray.score(job, progress=False)
    assert raised.value.exit_code == 5
    assert not Path(job.run_uri, "_SUCCESS").exists()


def test_a_copy_of_a_checkpoint_on_another_node_is_known_by_its_hash(
    policy_folders: dict[str, Path], tmp_path: Path
) -> None:
    from dataclasses import replace

    from dlogp_ray.policies.checkpoint import resolve
    from dlogp_ray.policies.loading import load_model

    known = resolve("rl", str(policy_folders["rl"])).know()
    copy = shutil.copytree(policy_folders["rl"], tmp_path / "copy", copy_function=shutil.copyfile)
    load_model(replace(resolve("rl", str(copy)), known=known))
    with (copy / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(DlogpError, match=r"policy_changed: rl .*config\.json"):
        load_model(replace(resolve("rl", str(copy)), known=known))


def test_a_copy_that_is_written_to_while_it_is_hashed_is_a_changed_policy(
    policy_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from dlogp_ray.policies.checkpoint import resolve
    from dlogp_ray.policies.loading import load_model

    known = resolve("rl", str(policy_folders["rl"])).know()
    copy = shutil.copytree(policy_folders["rl"], tmp_path / "copy", copy_function=shutil.copyfile)
    hashed = hashlib.file_digest

    def meanwhile(file: Any, name: str) -> Any:
        os.utime(copy / "model.safetensors")
        return hashed(file, name)

    monkeypatch.setattr(hashlib, "file_digest", meanwhile)
    with pytest.raises(InputChanged, match=r"policy_changed: rl .*model\.safetensors"):
        load_model(replace(resolve("rl", str(copy)), known=known))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("kind", [InputChanged, Unanswered, Damaged, Refused])
def test_what_ends_the_trial_of_policies_through_ray_is_told_as_it_is(
    kind: type[DlogpError], make_config: MakeConfig, tmp_path: Path
) -> None:
    from dlogp_ray.pipelines.run.through_ray import ThroughRay

    config = make_config(corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(2))))
    executor = ThroughRay()

    def work() -> Any:
        raise kind("what was found")

    with pytest.raises(kind, match=r"^what was found$") as raised:
        executor.attempt(executor.place(config, 1), work)
    assert raised.value.exit_code == kind.exit_code


def test_a_copy_that_is_overwritten_after_it_was_loaded_is_seen(
    policy_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Its inode is not the one of the machine where the policy was hashed."""
    from dataclasses import replace

    from dlogp_ray.policies.checkpoint import resolve

    known = resolve("rl", str(policy_folders["rl"])).know()
    copy = shutil.copytree(policy_folders["rl"], tmp_path / "copy", copy_function=shutil.copyfile)
    held = replace(resolve("rl", str(copy)), known=known).seen_now()
    held.check_in_place()
    same_size_and_time(copy / "model.safetensors", one_bit)
    with pytest.raises(DlogpError, match=r"model\.safetensors was overwritten after it was"):
        held.check_in_place()


def test_a_file_that_was_touched_after_it_was_loaded_is_hashed_once(
    policy_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from dlogp_ray.policies.checkpoint import resolve

    copy = shutil.copytree(policy_folders["rl"], tmp_path / "copy")
    held = resolve("rl", str(copy))
    held = replace(held, known=held.know())
    (copy / "model.safetensors").chmod(0o600)
    hashed, digest = list[str](), hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(3):
        held = held.check_in_place()
    assert hashed == [str(copy / "model.safetensors")]


def test_a_time_that_is_set_back_hides_no_change(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    known = store.know(path)
    assert store.is_still(path, known)
    times = path.stat()
    path.write_bytes(b"beyond")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not store.is_still(path, known)
    path.write_bytes(b"before")  # of another time, and the same
    assert store.is_still(path, known)
    path.unlink()
    assert not store.is_still(path, known)


# ---- What verify takes for damage, and what not.


@pytest.mark.usefixtures("stubs")
def test_units_without_rows_are_no_damage(make_config: MakeConfig, tmp_path: Path) -> None:
    """A blank file, and a line that spans units."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c/blank.jsonl").write_text("\n" * 5_000)
    rows = make_rows(3)
    rows[1]["note"] = "x" * 100_000
    write_jsonl(tmp_path / "c/long.jsonl", rows)
    job = make_config(corpus=str(tmp_path / "c"), unit_tokens=20)
    result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.rows) == (0, 3)
    run = dlogp_ray.open_run(result.run)
    empty = [unit for unit, footer in run.footers(run.entries()) if footer.said.rows_in == 0]
    assert len(empty) > 2
    assert verify(run) == []


@pytest.mark.usefixtures("stubs")
def test_an_object_that_comes_after_a_partial_seal_is_no_damage(
    half: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(half.model_copy(update={"seal_partial": True}), monkeypatch)
    opened = dlogp_ray.open_run(str(run))
    assert opened.sealed
    rows = opened.sql("SELECT count(*) FROM scores").fetchall()
    # Its writer was slow: of a copy of the job that was not troubled.
    monkeypatch.setitem(stub_policies.TROUBLE, "fails once", lambda _: None)
    whole = dlogp_ray.score(half.model_copy(update={"run_id": "whole"}), progress=False)
    (late,) = contents(whole.run).keys() - contents(str(run)).keys()
    shutil.copy(Path(whole.run, f"scores/{late}.parquet"), run / "scores")
    assert verify(opened) == []
    lines, document = report(opened, [], [])
    assert document["late"] == [late]
    assert any("1 object came after the run was sealed without" in line for line in lines)
    assert opened.sql("SELECT count(*) FROM scores").fetchall() == rows
    # Beyond what was planned nothing can be late.
    shutil.copy(Path(whole.run, f"scores/{late}.parquet"), run / "scores/part-00009999.parquet")
    (problem,) = verify(opened)
    assert "is not in the manifest" in problem.what


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_weights_that_are_swapped_before_actors_load_them_end_the_job(
    make_config: MakeConfig,
    own_policies: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dlogp_ray.pipelines.score import plan as planning

    job = make_config(
        corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(20))),
        policies=own_policies,
        run_on="ray",
    )
    probe = planning.probe

    def later(*arguments: Any, **more: Any) -> Any:
        found = probe(*arguments, **more)
        same_size_and_time(Path(own_policies["rl"], "model.safetensors"), one_bit)
        return found

    monkeypatch.setattr(planning, "probe", later)
    result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.sealed, result.units_done) == (4, False, 0)
    assert result.ended is not None
    assert result.ended.startswith("policy_changed: rl (")
    assert "model.safetensors" in result.ended
