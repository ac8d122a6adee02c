"""The whole job on S3: corpus, policies and run in a store, with secrets in none of them."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet as pq
import pytest
import stub_policies
import yaml
from conftest import make_rows, write_jsonl
from s3_server import ACCESS_KEY, SECRET_KEY, FaultyProxy
from typer.testing import CliRunner

import dlogp_ray
from dlogp_ray import store
from dlogp_ray.cli import app
from dlogp_ray.errors import Refused
from dlogp_ray.store import patient_s3
from dlogp_ray.store import s3 as s3_module
from dlogp_ray.store.patient_s3 import PatientS3
from dlogp_ray.tables.verification import verify

TIMEOUT_S = 400  # of what takes a minute: to end what hangs, on slow machines too


def upload(folder: Path, uri: str) -> str:
    for path in folder.iterdir():
        store.create(f"{uri}/{path.name}", path.read_bytes())
    return uri


def hashes(run: str) -> dict[str, str]:
    """Unit -> content hash of its object, without the names of corpus files."""
    opened = dlogp_ray.open_run(run)
    rows = opened.dataset().to_table().drop_columns(["source_file"]).to_pylist()
    return {f"{row['sample_id']} {row['policy']}": repr(row) for row in rows}


def job_in(place: str, finished: Any, policy_folders: dict[str, Path]) -> dlogp_ray.ScoreConfig:
    """The finished run's job, with corpus, policies and output there."""
    fields = finished.config.model_dump(mode="json") | {
        "corpus": upload(Path(finished.config.corpus[0].path), f"{place}/corpus"),
        "policies": {n: upload(path, f"{place}/{n}") for n, path in policy_folders.items()},
        "output": f"{place}/runs",
    }
    return dlogp_ray.ScoreConfig.from_mapping(fields)


@pytest.fixture
def on_s3(bucket: str, finished: Any, policy_folders: dict[str, Path]) -> dlogp_ray.ScoreConfig:
    return job_in(bucket, finished, policy_folders)


@pytest.fixture(scope="module")
def scored_on_s3(
    s3: FaultyProxy, finished: Any, policy_folders: dict[str, Path]
) -> tuple[dlogp_ray.ScoreConfig, dlogp_ray.ScoreResult]:
    config = job_in(f"s3://tests/{uuid.uuid4().hex[:12]}", finished, policy_folders)
    return config, dlogp_ray.score(config, progress=False)


def test_a_job_on_s3_has_the_rows_of_the_same_job_on_disk(scored_on_s3: Any, finished: Any) -> None:
    (config, result), local = scored_on_s3, finished.result
    assert (result.exit_code, result.units) == (0, local.units)
    assert result.units > 2
    assert hashes(result.run) == hashes(local.run)
    run = dlogp_ray.open_run(result.run)
    assert run.sql("SELECT count(*) FROM scores").fetchall() == [(40,)]
    assert verify(run) == []
    again = dlogp_ray.score(config, progress=False)
    assert (again.units_scored, again.rows) == (0, 40)


def test_statistics_on_s3_are_those_on_disk(
    scored_on_s3: Any, finished: Any, tmp_path: Path
) -> None:
    local = shutil.copytree(finished.result.run, tmp_path / "r")
    figures = []
    for uri in (scored_on_s3[1].run, str(local)):
        found = dlogp_ray.sparsity(dlogp_ray.SparsityConfig(run=uri), progress=False)
        run = dlogp_ray.open_run(uri)
        assert verify(run) == []
        assert store.read(f"{found.folder}/report.html").startswith(b"<!doctype html>")
        query = "SELECT * FROM sparsity ORDER BY policy, generator, statistic, figure, x"
        figures.append(run.sql(query).df())
    assert len(figures[0]) > 1_000
    pandas.testing.assert_frame_equal(*figures, check_exact=True)


def test_a_flaky_store_changes_no_row(
    on_s3: dlogp_ray.ScoreConfig, finished: Any, s3: FaultyProxy
) -> None:
    with s3.fault("flaky", on_s3.run_uri.removeprefix("s3://"), times=10_000) as fault:
        result = dlogp_ray.score(on_s3, progress=False)
    assert len(fault.seen) > 30
    assert (result.exit_code, result.sealed) == (0, True)
    assert hashes(result.run) == hashes(finished.result.run)
    assert verify(dlogp_ray.open_run(result.run)) == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tenths of seconds in place of seconds."""
    retries = {"mode": "standard", "total_max_attempts": 2}
    for patient, config in s3_module.CONFIG.items():
        quick = {"read_timeout": 0.5, "retries": retries}
        monkeypatch.setitem(s3_module.CONFIG, patient, config | quick)
    monkeypatch.setattr(patient_s3, "SAID_FIRST_S", 0.2)
    PatientS3.clear_instance_cache()
    yield
    PatientS3.clear_instance_cache()


@pytest.mark.usefixtures("impatient")
def test_a_silent_store_fails_the_units_that_need_it_and_says_so(
    make_config: Any,
    tmp_path: Path,
    bucket: str,
    s3: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub_policies.install(monkeypatch.setattr)
    corpus = str(write_jsonl(tmp_path / "c.jsonl", make_rows(60)))
    job = make_config(corpus=corpus, output=bucket, unit_tokens=150)
    run = job.run_uri.removeprefix("s3://")
    with s3.fault("stall", f"^PUT /{run}/scores/part-0000000[23]", times=100) as fault:
        result = dlogp_ray.score(job, progress=False)
    assert len(fault.seen) == 4  # two tries each, by one layer
    assert (result.exit_code, result.sealed) == (4, False)
    assert list(result.units_failed) == ["part-00000002", "part-00000003"]
    assert result.units_done == result.units - 2 > 2  # those after it were tried, and done
    said = capsys.readouterr().err
    for unit, cause in result.units_failed.items():
        assert f"s3://{run}/scores/{unit}.parquet: no answer in" in cause
        assert f"dlogp: waiting for s3://{run}/scores/{unit}.parquet: no answer for" in said
    again = dlogp_ray.score(job, progress=False)
    assert (again.exit_code, again.sealed, again.units_scored) == (0, True, 2)


@pytest.mark.usefixtures("impatient")
def test_the_silence_of_a_store_that_other_processes_use_is_said_here(
    bucket: str, s3: FaultyProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ""
    with (
        s3.fault("stall", "^HEAD", times=100),
        s3_module.asked_now_and_then(lambda: store.exists(f"{bucket}/run.json"), every_s=0.1),
    ):
        while "waiting for" not in said:  # for as long as it takes
            said += capsys.readouterr().err
            time.sleep(0.05)
    assert f"dlogp: waiting for {bucket}/run.json: no answer for" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["503", "500", "reset", "lost answer", "cut short", "409", "stall"]
)
@pytest.mark.parametrize("name", ["run.json", "scores/part-", "manifest.parquet", "_SUCCESS"])
def test_a_fault_of_one_kind_at_one_kind_of_write_changes_no_row(
    kind: Any,
    name: str,
    on_s3: dlogp_ray.ScoreConfig,
    finished: Any,
    s3: FaultyProxy,
) -> None:
    # A stalled request is given up after 60 s; of the others three in a row are met.
    times = 1 if kind == "stall" else 3
    run = on_s3.run_uri.removeprefix("s3://")
    with s3.fault(kind, f"^PUT /{run}/{name}", times=times) as fault:
        result = dlogp_ray.score(on_s3, progress=False)
    # A write whose answer was lost is not tried again once it is seen to have been done.
    assert 1 <= len(fault.seen) <= times
    assert (result.exit_code, result.sealed) == (0, True)
    assert hashes(result.run) == hashes(finished.result.run)
    assert verify(dlogp_ray.open_run(result.run)) == []


def test_no_access_is_one_line_before_anything_runs(
    on_s3: dlogp_ray.ScoreConfig, tmp_path: Path
) -> None:
    job = tmp_path / "job.yaml"
    for change, named in (
        ({"output": "s3://no-such-bucket/runs"}, "no such bucket"),
        ({"corpus": ["s3://no-such-bucket/c.jsonl"]}, "no such bucket"),
    ):
        job.write_text(yaml.safe_dump(on_s3.model_dump(mode="json") | change))
        done = CliRunner().invoke(app, ["score", str(job)])
        assert isinstance(done.exception, Refused)
        assert named in str(done.exception)
        assert "\n" not in str(done.exception)


@pytest.mark.slow
def test_verify_repairs_a_damaged_object(scored_on_s3: Any) -> None:
    _config, result = scored_on_s3
    undisturbed = hashes(result.run)
    run = dlogp_ray.open_run(result.run)
    uri = run.object_uri("part-00000001")
    damaged = bytearray(store.read(uri))
    damaged[len(damaged) // 3] ^= 1
    store.replace(uri, bytes(damaged))

    done = CliRunner().invoke(app, ["verify", result.run])
    assert done.exit_code == 6
    document = json.loads(done.stdout.splitlines()[-1])
    assert {problem["unit"] for problem in document["problems"]} == {"part-00000001"}
    assert store.read(uri) == bytes(damaged)  # nothing was touched

    done = CliRunner().invoke(app, ["verify", result.run, "--repair", "--no-progress"])
    assert done.exit_code == 0, done.stdout
    assert "repaired: part-00000001" in done.stdout
    assert hashes(result.run) == undisturbed
    aside = dict(store.list_objects(run.path("quarantine")))
    assert aside.keys() == {"part-00000001-1.parquet", "manifest-1.parquet"}
    assert store.read(run.path("quarantine/part-00000001-1.parquet")) == bytes(damaged)
    assert run.totals()["version"] == 2
    assert run.manifest().schema.metadata[b"dlogp_ray.version"] == b"2"
    assert CliRunner().invoke(app, ["verify", result.run]).exit_code == 0


@dataclass(frozen=True)
class TwoDrivers:
    """Two drivers that did one run at once.

    Attributes:
        ours: What the one in this process said.
        theirs: What the other printed as its result.
        texts: Name -> all that the other printed or logged, and every object of the run.
    """

    ours: dlogp_ray.ScoreResult
    theirs: dict[str, Any]
    texts: dict[str, bytes]


@pytest.fixture(scope="module")
def two_drivers(
    s3: FaultyProxy, one_fails: Any, policy_folders: dict[str, Path], tmp_path_factory: Any
) -> TwoDrivers:
    """One here; the other with a Ray of its own, so that the log is all of its log."""
    config = job_in(f"s3://tests/{uuid.uuid4().hex[:12]}", one_fails, policy_folders)
    job = tmp_path_factory.mktemp("two_drivers") / "job.yaml"
    job.write_text(yaml.safe_dump(config.model_dump(mode="json") | {"run_on": "ray"}))
    secrets = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    # A short name: that of a socket in it has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_folder:
        other = subprocess.Popen(
            [sys.executable, "-m", "dlogp_ray", "score", str(job)],
            env=kept | secrets | {"RAY_TMPDIR": ray_folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        ours = dlogp_ray.score(config, progress=False)
        printed, said = other.communicate(timeout=TIMEOUT_S)
        assert other.returncode == 4, said  # for the unit that always fails
        logs = [path for path in Path(ray_folder).rglob("*") if path.is_file()]
        texts = {str(path): path.read_bytes() for path in logs}
    assert len(texts) > 5
    texts |= {"stdout": printed.encode(), "stderr": said.encode()}
    filesystem, path = store.open_store(config.run_uri)
    for key in filesystem.find(path):
        texts[key] = filesystem.cat_file(key)
        if key.endswith(".parquet"):  # pages are compressed
            table = pq.read_table(io.BytesIO(texts[key]))
            texts[key] += repr((table.to_pylist(), table.schema.metadata)).encode()
    return TwoDrivers(ours, json.loads(printed.splitlines()[-1]), texts)


@pytest.mark.slow  # objects that are created once are raced for in tests/store
def test_two_drivers_on_one_run(two_drivers: TwoDrivers, one_fails: Any) -> None:
    ours, theirs = two_drivers.ours, two_drivers.theirs
    assert ours.exit_code == 4
    # none of them twice
    assert ours.units_scored + theirs["units_scored"] == one_fails.result.units_done > 2
    assert theirs["run"] == ours.run
    assert hashes(ours.run) == hashes(one_fails.result.run)
    assert verify(dlogp_ray.open_run(ours.run)) == []


@pytest.mark.slow
def test_secrets_are_in_no_object_and_in_no_log(two_drivers: TwoDrivers) -> None:
    texts = two_drivers.texts
    assert any(key.endswith("run.json") for key in texts)
    assert any("failed/" in key for key in texts)
    for name, text in texts.items():
        assert SECRET_KEY.encode() not in text, name
        assert ACCESS_KEY.encode() not in text, name
