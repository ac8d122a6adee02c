"""How a run is made, here and through Ray, with stubs in place of policies: the same either way."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import stub_policies
import yaml
from conftest import contents, make_rows, write_jsonl
from rich.console import Console

import dlogp_ray
from dlogp_ray import store
from dlogp_ray.analysis.overview import overview, print_overview
from dlogp_ray.config import ScoreConfig
from dlogp_ray.errors import Damaged, Stopped
from dlogp_ray.tables.calls import Call, read_calls
from dlogp_ray.tables.verification import verify

TESTS = Path(__file__).parents[1]
RAY = pytest.param("ray", marks=pytest.mark.ray)
RunOn = Literal["auto", "here", "ray"]
MakeJob = Callable[..., ScoreConfig]


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_policies.install(monkeypatch.setattr)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a terminal: what is started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ray_if_wanted(request: pytest.FixtureRequest) -> None:
    """The tests' own Ray where a parameter says so."""
    if "ray" in request.node.callspec.params.values():
        request.getfixturevalue("ray_session")


@pytest.fixture
def make_job(make_config: Any, tmp_path: Path) -> MakeJob:
    """A job over 120 rows in some units; ``trouble`` is put into a row: index -> generator."""

    def make(trouble: dict[int, str] | None = None, rows: int = 120, **fields: Any) -> ScoreConfig:
        corpus = make_rows(rows)
        for index, generator in (trouble or {}).items():
            corpus[index]["generator"] = generator
        name = str(tmp_path / f"corpus-{len(list(tmp_path.glob('corpus*')))}.jsonl")
        path = write_jsonl(Path(name), corpus)
        config: ScoreConfig = make_config(corpus=str(path), **fields)
        return config

    return make


def command(config: ScoreConfig, folder: Path, *words: str) -> list[str]:
    path = folder / f"job-{time.monotonic_ns()}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return [sys.executable, "-m", "dlogp_ray", "score", str(path), "--no-progress", *words]


def environment() -> dict[str, str]:
    """Of commands whose policies are stubs, with no cluster named."""
    paths = [str(TESTS / "faults"), str(TESTS), os.environ.get("PYTHONPATH", "")]
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "DLOGP_TESTS_STUB": "1"}


def run_command(config: ScoreConfig, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(config, folder),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def objects(run: str) -> dict[str, bytes]:
    return {
        name: store.read(f"{run}/scores/{name}") for name, _ in store.list_objects(f"{run}/scores")
    }


def manifest(run: str) -> list[dict[str, Any]]:
    """Without the etags, which have times in them."""
    rows: list[dict[str, Any]] = dlogp_ray.open_run(run).manifest().to_pylist()
    return [{key: value for key, value in row.items() if key != "etag"} for row in rows]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_is_made_here_is_equal_to_the_byte_to_what_is_made_through_ray(
    make_job: MakeJob,
) -> None:
    job = make_job()
    here, ray = (
        dlogp_ray.score(job.model_copy(update={"run_id": where, "run_on": where}), progress=False)
        for where in ("here", "ray")
    )
    assert here.exit_code == ray.exit_code == 0
    assert len(objects(here.run)) == here.units > 5
    assert objects(here.run) == objects(ray.run)
    assert manifest(here.run) == manifest(ray.run)
    sealed = dlogp_ray.open_run(here.run).seal
    hashes = {name: value for name, value in sealed.items() if name.endswith("sha256")}
    assert len(hashes) == 3  # of records with times in them
    assert sealed == dlogp_ray.open_run(ray.run).seal | hashes
    for result, where in ((here, "here"), (ray, "ray")):
        (call,) = read_calls(result.run)
        assert (call.run_on, call.ended, call.under_way) == (where, True, ())
        assert call.units_created == result.units
        assert verify(dlogp_ray.open_run(result.run)) == []


@pytest.mark.parametrize("trouble", ["is stopped once", "is interrupted once"])
@pytest.mark.parametrize("then", ["here", RAY])
@pytest.mark.usefixtures("ray_if_wanted", "interruptible")
def test_a_job_that_is_stopped_here_is_ended_by_either(
    trouble: str, then: RunOn, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job({60: f"{trouble}: {tmp_path / 'flag'}"}, run_on="here")
    with pytest.raises((Stopped, KeyboardInterrupt)):
        dlogp_ray.score(job, progress=False)
    (stopped,) = read_calls(job.run_uri)
    assert (stopped.ended, stopped.under_way) == (False, ())
    before = contents(job.run_uri)
    assert len(before) > 1
    assert stopped.stopped == ("SIGTERM" if trouble == "is stopped once" else "SIGINT")
    assert stopped.units_created <= len(before) <= stopped.units_created + 2  # still being written
    assert stopped.spent["units"] > 0
    assert not dlogp_ray.open_run(job.run_uri).sealed

    result = dlogp_ray.score(job.model_copy(update={"run_on": then}), progress=False)
    assert (result.exit_code, result.sealed) == (0, True)
    assert result.units_scored == result.units - len(before) > 1
    assert before.items() <= contents(job.run_uri).items()
    untroubled = dlogp_ray.score(job.model_copy(update={"run_id": "untroubled"}), progress=False)
    assert contents(result.run) == contents(untroubled.run)


@pytest.mark.parametrize("where", ["here", RAY])
@pytest.mark.usefixtures("ray_if_wanted")
def test_a_unit_that_fails_is_the_only_one_missing(where: RunOn, make_job: MakeJob) -> None:
    job = make_job({60: "fails"}, run_on=where)
    result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.sealed, result.units_done) == (4, False, result.units - 1)
    ((unit, cause),) = result.units_failed.items()
    assert "scoring: ValueError: a row that can't be scored (stub_policies.py:" in cause
    assert dlogp_ray.open_run(result.run).failures()[unit]["attempts"] == 1
    partial = dlogp_ray.score(job.model_copy(update={"seal_partial": True}), progress=False)
    assert (partial.exit_code, partial.sealed) == (4, True)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_unit_that_kills_its_actor_is_the_only_one_missing(
    make_job: MakeJob, tmp_path: Path
) -> None:
    flag = tmp_path / "twice"
    job = make_job({60: f"kills twice: {flag}"}, run_on="ray", max_unit_attempts=2)
    result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.sealed, result.units_done) == (4, False, result.units - 1)
    ((unit, cause),) = result.units_failed.items()
    assert "the process that did it died in each of 2 attempts" in cause
    record = dlogp_ray.open_run(result.run).failures()[unit]
    assert (record["attempts"], record["unit"]["index"]) == (2, int(unit[-8:]))

    mended = dlogp_ray.score(job, progress=False)
    assert (mended.exit_code, mended.units_scored, mended.sealed) == (0, 1, True)
    assert dlogp_ray.open_run(result.run).failures() == {}
    untroubled = dlogp_ray.score(
        job.model_copy(update={"run_id": "untroubled", "run_on": "here"}), progress=False
    )
    assert contents(mended.run) == contents(untroubled.run)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_sigterm_amid_a_job_through_ray_loses_nothing_and_does_nothing_twice(
    make_job: MakeJob,
) -> None:
    job = make_job({index: "sleeps: 0.3" for index in range(0, 120, 10)}, run_on="ray")
    scores = Path(job.run_uri, "scores")

    def stop() -> None:
        while len(list(scores.glob("part-*"))) < 2:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped) as stopped:
        dlogp_ray.score(job, progress=False)
    thread.join()
    assert stopped.value.exit_code == 143
    before = contents(job.run_uri)
    assert 2 <= len(before)
    (call,) = read_calls(job.run_uri)
    assert (call.run_on, call.ended, call.stopped) == ("ray", False, "SIGTERM")
    assert 1 <= call.units_created <= len(before)
    assert call.spent["units"] > 0
    told = io.StringIO()
    print_overview(overview(dlogp_ray.open_run(job.run_uri)), Console(file=told, width=200))
    assert f"{call.units_created} units through Ray, stopped by SIGTERM: " in told.getvalue()
    assert not dlogp_ray.open_run(job.run_uri).sealed
    result = dlogp_ray.score(job.model_copy(update={"run_on": "here"}), progress=False)
    assert (result.exit_code, result.sealed) == (0, True)
    assert result.units_scored == result.units - len(before) > 0
    assert before.items() <= contents(result.run).items()


def killed(config: ScoreConfig, folder: Path) -> Call:
    """A command that a unit takes with it; the record that it leaves."""
    before = len(read_calls(config.run_uri))
    done = run_command(config, folder)
    assert done.returncode == -signal.SIGKILL, done.stderr
    calls = read_calls(config.run_uri)
    assert len(calls) == before + 1
    assert not calls[-1].alive
    return calls[-1]


def test_units_that_a_process_died_with_come_last_alone_and_are_given_up_in_the_end(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job({60: "kills"}, run_on="here", max_unit_attempts=2)
    first = killed(job, tmp_path)
    assert 2 <= len(first.under_way) <= 3  # its neighbours, which are read ahead and written behind
    second = killed(job, tmp_path)
    (guilty,) = second.under_way
    assert guilty in first.under_way
    others = {*first.under_way} - {guilty}
    assert contents(job.run_uri).keys() >= {
        f"part-{index:08d}" for index in range(dlogp_ray.open_run(job.run_uri).planned)
    } - {*first.under_way}

    result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.sealed) == (4, False)
    assert list(result.units_failed) == [guilty]
    assert "the process that did it died in each of 2 attempts" in result.units_failed[guilty]
    assert contents(job.run_uri).keys() >= others
    # A call that comes to its end has settled that; a later one tries again.
    assert killed(job, tmp_path).under_way == (guilty,)


def isolates(result: dict[str, Any], died: Call) -> None:
    """Only the unit that was under way when a process died is missing."""
    assert (result["exit_code"], result["units_done"]) == (4, result["units"] - 1)
    ((unit, cause),) = result["units_failed"].items()
    assert unit in died.under_way
    assert "the process that did it died in each of 1 attempts" in cause
    assert [call.run_on for call in read_calls(result["run"])] == ["here", "ray"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_died_here_is_isolated_by_ray(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job({60: "kills"}, run_on="auto", max_unit_attempts=1)
    died = killed(job, tmp_path)
    isolates(dlogp_ray.score(job, progress=False).as_json(), died)


@pytest.mark.slow
@pytest.mark.ray
def test_a_command_that_died_here_goes_through_ray_the_next_time(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job({60: "kills"}, run_on="auto", max_unit_attempts=1)
    died = killed(job, tmp_path)
    done = run_command(job, tmp_path)
    isolates(json.loads(done.stdout.splitlines()[-1]), died)


def test_a_process_that_is_killed_from_outside_is_no_unit_s_fault(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job({60: f"kills once: {tmp_path / 'flag'}"}, run_on="here")
    killed(job, tmp_path)
    result = dlogp_ray.score(job, progress=False)
    assert (result.exit_code, result.sealed) == (0, True)
    untroubled = dlogp_ray.score(job.model_copy(update={"run_id": "untroubled"}), progress=False)
    assert contents(result.run) == contents(untroubled.run)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_two_commands_at_once_one_here_and_one_through_ray(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job({index: "sleeps: 0.2" for index in range(0, 120, 10)})
    other = subprocess.Popen(
        command(job, tmp_path, "--run-on", "here"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not contents(job.run_uri) if Path(job.run_uri, "run.json").exists() else True:
        assert other.poll() is None, other.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ours = dlogp_ray.score(job.model_copy(update={"run_on": "ray"}), progress=False)
    printed, log = other.communicate(timeout=300)
    assert other.returncode == 0, log
    theirs = json.loads(printed.splitlines()[-1])
    assert ours.exit_code == 0
    assert ours.units_scored + theirs["units_scored"] == ours.units
    assert theirs["units_scored"] > 0
    assert verify(dlogp_ray.open_run(job.run_uri)) == []
    untroubled = dlogp_ray.score(
        job.model_copy(update={"run_id": "untroubled", "run_on": "here"}), progress=False
    )
    assert contents(ours.run) == contents(untroubled.run)


def test_the_time_of_a_job_adds_up_and_stands_in_its_record(make_job: MakeJob) -> None:
    job = make_job({0: "sleeps: 1.5"}, run_on="here")
    result = dlogp_ray.score(job, progress=False)
    assert list(result.spent) == ["start", "plan", "probe", "noise floor", "units", "seal"]
    assert sum(result.spent.values()) == pytest.approx(result.seconds, abs=0.5)
    assert result.spent["units"] >= 1.5
    (call,) = read_calls(result.run)
    assert call.spent == result.spent
    assert result.as_json()["spent"] == result.spent


def test_threads_of_the_caller_are_as_they_were(make_job: MakeJob) -> None:
    import torch

    before = threading.active_count(), torch.get_num_threads()
    dlogp_ray.score(make_job(run_on="here"), progress=False)
    assert (threading.active_count(), torch.get_num_threads()) == before


def test_a_sealed_run_without_its_record_is_refused_before_work(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_policies.install(monkeypatch.setattr)
    job = make_config(corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(20))))
    run = Path(dlogp_ray.score(job, progress=False).run)
    (run / "run.json").unlink()
    with pytest.raises(Damaged, match=r"is sealed, and its run\.json is gone"):
        dlogp_ray.score(job, progress=False)
    assert not (run / "run.json").exists()
