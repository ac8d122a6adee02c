"""Whatever dies on the way: the rows are those of an undisturbed run, none missing, none twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import contents, make_rows, write_jsonl
from s3_server import FaultyProxy

import dlogp_ray
from dlogp_ray import store
from dlogp_ray.config import ScoreConfig
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.run import make_run as making
from dlogp_ray.tables.verification import verify

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

FAULTS = Path(__file__).parents[1] / "faults"
TIMEOUT_S = 400  # of what takes a minute: to end what hangs, on slow machines too

# Every object that a run consists of: how it is written, and its name.
WRITES = {
    "the run's record": ("create", "run.json"),
    "the list of units": ("create", "units.parquet"),
    "a unit's object": ("create", "scores/part-00000002.parquet"),
    "a failed unit's record": ("replace", "failed/part-.*.json"),
    "the manifest": ("replace", "manifest.parquet"),
    "the seal": ("create", "_SUCCESS"),
}
WHEN = ("before", "during", "after")
GRID = list(product(("disk", "s3"), WRITES, WHEN))


def write_job(config: ScoreConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def start(job: Path, **environment: str) -> subprocess.Popen[str]:
    """A driver of its own, and with a Ray of its own where it asks for one."""
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "dlogp_ray", "score", str(job), "--no-progress"],
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def on_its_own(script: str, *words: str) -> dict[str, Any]:
    """What a script of ``faults/`` says at its end: a process with a Ray of its own."""
    done = subprocess.run(
        [sys.executable, str(FAULTS / script), *words],
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said | {"stderr": done.stderr}


@pytest.fixture
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    where = request.node.callspec.params["where"]
    return str(tmp_path / "runs") if where == "disk" else request.getfixturevalue("bucket")


@pytest.mark.slow  # a driver that is stopped in the middle is in test_interruption
@pytest.mark.parametrize(("first", "then"), [("here", "ray"), ("ray", "here")])
@pytest.mark.parametrize(("where", "write", "when"), GRID)
def test_a_driver_that_is_killed_at_a_write(
    where: str,
    write: str,
    when: str,
    first: str,
    then: str,
    output: str,
    one_fails: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    operation, name = WRITES[write]
    flag = tmp_path / "killed"
    config = one_fails.elsewhere(output)
    job = write_job(config.model_copy(update={"run_on": first}), tmp_path / "job.yaml")
    if where == "s3" and when == "during":
        proxy: FaultyProxy = request.getfixturevalue("s3")
        killed: list[int] = []

        def kill() -> None:
            killed.append(driver.pid)
            driver.send_signal(signal.SIGKILL)
            flag.touch()

        path = config.run_uri.removeprefix("s3://")
        with proxy.fault("cut short", f"^PUT /{path}/{name}", action=kill):
            driver = start(job)
            driver.communicate(timeout=TIMEOUT_S)
    else:
        point = {"operation": operation, "name": name, "when": when, "flag": str(flag)}
        driver = start(
            job,
            PYTHONPATH=str(FAULTS),
            DLOGP_TESTS_KILL=json.dumps(point | {"victim": "driver"}),
        )
        driver.communicate(timeout=TIMEOUT_S)
    assert flag.exists()
    assert driver.returncode == -signal.SIGKILL

    config = config.model_copy(update={"run_on": then})
    result = dlogp_ray.score(config, progress=False)
    assert (result.exit_code, result.sealed) == (4, True)  # for the unit that always fails
    assert list(result.units_failed) == [f"part-{result.units - 1:08d}"]
    assert contents(result.run) == contents(one_fails.result.run)
    assert verify(dlogp_ray.open_run(result.run)) == []


CODE = """
import os
from transformers import LlamaForCausalLM
if os.path.exists({flag!r}):
    os._exit(1)
class Deadly(LlamaForCausalLM):
    pass
"""


@pytest.fixture
def deadly(make_config: Any, policy_folders: dict[str, Path], tmp_path: Path) -> ScoreConfig:
    """A job one of whose policies, once ``tmp_path / "flag"`` is there, kills who loads it."""
    folder = tmp_path / "deadly"
    shutil.copytree(policy_folders["rl"], folder)
    (folder / "deadly.py").write_text(CODE.format(flag=str(tmp_path / "flag")))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "deadly.Deadly"}
    (folder / "config.json").write_text(json.dumps(config))
    return make_config(  # type: ignore[no-any-return]
        corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(40))),
        policies={"base": str(policy_folders["base"]), "rl": str(folder)},
        trust_remote_code=True,
        max_unit_attempts=2,
        run_on="ray",
    )


def test_a_policy_whose_loading_kills_the_process_ends_the_job(
    deadly: ScoreConfig, tmp_path: Path
) -> None:
    (tmp_path / "flag").touch()
    with pytest.raises(Refused, match="the process that loads the policies died"):
        dlogp_ray.score(deadly, progress=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_actors_that_die_whenever_they_load_end_the_job(
    deadly: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the probe lives, as where memory suffices for one actor and not for several
    begin = making.begin_run

    def begin_and_flag(*args: Any) -> Any:
        (tmp_path / "flag").touch()
        return begin(*args)

    with monkeypatch.context() as patch:
        patch.setattr(making, "begin_run", begin_and_flag)
        result = dlogp_ray.score(deadly, progress=False)
    assert (result.exit_code, result.units_done) == (4, 0)
    assert result.ended is not None
    assert "an actor died in each of 2 attempts to load the policies" in result.ended
    assert result.units_failed == {}  # none was tried


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can't be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full(one_fails: Any, small_disk: Path) -> None:
    config = one_fails.elsewhere(small_disk).model_copy(update={"seal_partial": False})
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2**20 - 80 * 1024))  # room for the records and a few objects
    full = dlogp_ray.score(config, progress=False)
    assert full.exit_code == 4
    assert not full.sealed
    causes = [c for unit, c in full.units_failed.items() if "No space left on device" in c]
    assert causes
    assert not list(small_disk.rglob(".creating-*"))
    filler.unlink()
    result = dlogp_ray.score(one_fails.elsewhere(small_disk), progress=False)
    assert result.sealed
    assert contents(result.run) == contents(one_fails.result.run)
    assert dict(store.list_objects(f"{result.run}/failed")).keys() == {
        f"part-{result.units - 1:08d}.json"
    }


@pytest.mark.slow  # spilling is Ray's own; nothing here protects from it
def test_an_object_store_that_is_full(make_config: Any, tmp_path: Path) -> None:
    # 110 MB, as a carried column, in units of 40 MB and a store of 80 MB
    rows = [row | {"note": "x" * 500_000} for row in make_rows(220)]
    settings = {
        "corpus": str(write_jsonl(tmp_path / "c.jsonl", rows)),
        "unit_tokens": 1_700,
        "carry": {"note": "string"},
    }
    undisturbed = contents(dlogp_ray.score(make_config(**settings), progress=False).run)
    assert len(undisturbed) > 2
    disturbed = make_config(**settings, run_id="disturbed", run_on="ray")
    job = write_job(disturbed, tmp_path / "job.yaml")
    said = on_its_own("small_object_store.py", str(job))
    assert "Spilled" in said["summary"]
    assert said["exit_code"] == 0
    assert contents(said["run"]) == undisturbed


@pytest.mark.slow  # a process of a node is lost in each of the tests above
def test_a_node_is_lost_and_nothing_comes_in_its_place(many_units: Any, tmp_path: Path) -> None:
    actors = {"actors": {"min": 2, "max": 2}, "run_on": "ray"}
    config = ScoreConfig.from_mapping(
        many_units.elsewhere(tmp_path).model_dump(mode="json") | actors
    )
    job = write_job(config, tmp_path / "job.yaml")
    said = on_its_own("clusters.py", "lose", str(job))
    assert said["objects_at_loss"] < many_units.result.units
    assert said["exit_code"] == 0
    assert contents(said["run"]) == contents(many_units.result.run)


@pytest.mark.slow
def test_a_job_waits_for_its_first_node_and_grows_to_more(make_config: Any, tmp_path: Path) -> None:
    rows = make_rows(300)
    for row in rows[60:]:
        row["generator"] = f"waits for: {tmp_path / 'job.go'}"
    corpus = str(write_jsonl(tmp_path / "c.jsonl", rows))
    config = make_config(corpus=corpus, actors={"min": 1, "max": 4}, run_on="ray")
    said = on_its_own("clusters.py", "grow", str(write_job(config, tmp_path / "job.yaml")))
    assert said["waited"]
    assert "waiting for a node with 0.999 CPUs" in said["stderr"]
    assert (said["before"], said["after"]) == (1, 2)  # nodes with actors
    assert said["exit_code"] == 0
