"""Where a job goes: here or through Ray, by what it asks for, what there is, and how long it is."""

import timeit
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import make_rows, write_jsonl

from dlogp_ray.config import ScoreConfig
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.run import cost, for_policies, here, session
from dlogp_ray.pipelines.run.cost import ray_costs_s, settled
from dlogp_ray.pipelines.run.for_policies import ForPolicies, least_seconds
from dlogp_ray.pipelines.run.for_tables import tables_on
from dlogp_ray.pipelines.run.here import Here
from dlogp_ray.pipelines.score.job import ScoreJob
from dlogp_ray.pipelines.score.plan import plan_score

NOBODY = Counter[str]()


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No Ray is there; each beginning of one is noted, and none starts."""
    noted: list[str] = []
    monkeypatch.setattr(session, "was_there", lambda: False)
    monkeypatch.setattr(session, "begin", lambda: noted.append("begun"))
    monkeypatch.setattr(for_policies, "through_ray", lambda: "ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return noted


@pytest.fixture
def job(make_config: Any, tmp_path: Path) -> ScoreJob:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", make_rows(3))
    config = make_config(corpus=str(corpus), actors=None, run_on="auto")
    return plan_score(config).job


def with_config(job: ScoreJob, **fields: Any) -> ScoreJob:
    return ScoreJob(job.run_uri, job.config.model_copy(update=fields), job.rules)


def test_what_is_small_is_done_here(job: ScoreJob, begun: list[str]) -> None:
    chosen = ForPolicies(settled("auto"))
    executor = chosen.tried(job, 1_000, NOBODY)
    assert isinstance(executor, Here)
    assert executor.place(job.config).max_actors == here.resources()["CPU"]  # not known yet
    done = chosen.done(executor, ray_costs_s())
    assert done is executor
    assert done.place(job.config).max_actors == 1
    assert not begun


def test_what_turns_out_to_take_longer_goes_through_ray(job: ScoreJob) -> None:
    chosen = ForPolicies("auto")
    executor = chosen.tried(job, 1_000, NOBODY)
    assert chosen.done(executor, ray_costs_s() + 0.1) == "ray"


def test_where_python_takes_longer_so_does_ray_s_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the quickest of some tries: what else a machine does can only make them longer."""

    def costs(*seconds: float) -> float:
        monkeypatch.setattr(timeit, "repeat", lambda piece, number, repeat: [*seconds])
        ray_costs_s.cache_clear()
        return ray_costs_s()

    once, busy, slow = costs(0.002, 0.001), costs(0.001, 0.5), costs(0.003, 0.004)
    ray_costs_s.cache_clear()
    assert once == busy == pytest.approx(slow / 3)
    assert once == pytest.approx(20, rel=0.3)  # seconds, where the piece takes a millisecond


@pytest.mark.parametrize("cause", ["long", "memory", "died"])
def test_what_is_certain_to_need_ray_is_not_loaded_here(
    cause: str, job: ScoreJob, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if cause == "memory":
        monkeypatch.setattr(for_policies, "free_bytes", lambda: 2**30)
    amount = 10**15 if cause == "long" else 1_000
    died = Counter({"part-00000000": 1}) if cause == "died" else NOBODY
    assert ForPolicies("auto").tried(job, amount, died) == "ray"
    assert begun == ["begun"]


def test_policies_are_tried_here_while_a_ray_of_this_machine_starts(
    job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ForPolicies("ray")
    executor = chosen.tried(job, 1_000, NOBODY)
    assert isinstance(executor, Here)
    assert executor.place(job.config).max_actors == here.resources()["CPU"]
    assert chosen.done(executor, 0.1) == "ray"
    # With a cluster elsewhere, in a task there: its machines are others.
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ForPolicies("ray").tried(job, 1_000, NOBODY) == "ray"


def test_a_bound_of_the_time_is_two_products_a_weight_and_token(
    job: ScoreJob, policy_folders: dict[str, Path]
) -> None:
    files = [folder / "model.safetensors" for folder in policy_folders.values()]
    weights = sum(path.stat().st_size for path in files) / 4
    found = least_seconds(job, 1_000_000)
    assert found == pytest.approx(2 * weights * 1e6 / 4e12)
    half = with_config(job, policies={"rl": job.config.policies["rl"]})
    assert least_seconds(half, 1_000_000) == pytest.approx(found / 2, rel=0.01)


@pytest.mark.parametrize("asked", ["auto", "ray"])
def test_who_names_a_cluster_gets_it(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert settled(asked) == "ray"
    assert settled("here") == "here"
    assert tables_on("auto", 10) == "ray"


def test_a_session_of_the_caller_s_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "was_there", lambda: True)
    assert settled("auto") == "ray"


def test_tables_are_read_here_where_that_is_sooner(begun: list[str]) -> None:
    assert tables_on("auto", 1_000_000) == "here"
    assert not begun
    assert tables_on("auto", 100_000_000) == "ray"
    assert begun == ["begun"]
    assert tables_on("here", 10**12) == "here"
    assert tables_on("ray", 1) == "ray"


def config(**fields: Any) -> ScoreConfig:
    required = {"corpus": "c", "policies": {"rl": "p"}, "output": "o", "run_id": "r"}
    return ScoreConfig.from_mapping(required | fields)


def test_ray_begins_at_once_where_it_is_certain_and_there_is_work(
    begun: list[str], tmp_path: Path
) -> None:
    assert cost.begin(config()) == "auto"
    assert cost.begin(config(actors=1)) == "auto"
    assert not begun
    assert cost.begin(config(actors=2)) == "ray"
    assert cost.begin(config(actors={"max": 8})) == "ray"
    assert cost.begin(config(run_on="ray")) == "ray"
    assert len(begun) == 3
    (tmp_path / "r").mkdir()
    (tmp_path / "r/_SUCCESS").touch()
    assert cost.begin(config(run_on="ray", output=str(tmp_path))) == "ray"
    assert len(begun) == 3


@pytest.mark.parametrize(
    ("actors", "told"), [(2, "2"), ({"min": 1, "max": 3}, r"\{min: 1, max: 3\}")]
)
def test_several_actors_are_refused_here(actors: Any, told: str) -> None:
    with pytest.raises(Refused, match=rf"here: actors: {told} .* actors: 1, or run_on: ray"):
        cost.begin(config(run_on="here", actors=actors))


def test_a_submitted_job_is_refused_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(Refused, match=r"submitted to a Ray cluster.* write run_on: ray"):
        cost.begin(config(run_on="here"))
    with pytest.raises(Refused, match="submitted to a Ray cluster"):
        tables_on("here", 10)


def test_gpus_for_several_actors_are_refused_here(
    job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(for_policies, "resources", lambda: {"CPU": 8, "GPU": 4})
    with pytest.raises(
        Refused, match=r"run_on: here: this machine has GPUs for 4 actors.*actors: 1"
    ):
        ForPolicies("here").tried(with_config(job, run_on="here"), 1, NOBODY)
    assert ForPolicies("auto").tried(job, 1, NOBODY) == "ray"
    two = with_config(job, run_on="here", gpus_per_actor=2.0)
    with pytest.raises(Refused, match="GPUs for 2 actors"):
        ForPolicies("here").tried(two, 1, NOBODY)
    # Without GPUs there is one process, with as many threads as it likes.
    assert isinstance(
        ForPolicies("here").tried(with_config(job, gpus_per_actor=0.0), 1, NOBODY), Here
    )


def test_policies_that_memory_does_not_hold_are_refused_here(
    job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(for_policies, "free_bytes", lambda: 2**30)
    with pytest.raises(
        Refused, match=r"the policies take 0.0 GiB in float32 .* 1.0 GiB are free; use a machine"
    ):
        ForPolicies("here").tried(job, 1, NOBODY)


def test_more_actors_than_this_machine_has_cpus_are_refused_before_ray_starts(
    make_config: Any, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "cpus", lambda: 2)
    monkeypatch.setattr(cost, "has_gpus", lambda: False)
    many = make_config(corpus="c.jsonl", actors=50, run_on="auto")
    with pytest.raises(Refused, match=r"asks for 50 actors .* the machine has 2 CPUs and 0 GPUs"):
        cost.begin(many)
    on_gpus = make_config(corpus="c.jsonl", actors=2, gpus_per_actor=1, run_on="auto")
    with pytest.raises(Refused, match="2 actors with 1 GPU each, and the machine has 2 CPUs"):
        cost.begin(on_gpus)
    assert not begun
    assert cost.begin(make_config(corpus="c.jsonl", actors=2, run_on="auto")) == "ray"
    assert begun
    # What only Ray knows is for Ray to say.
    monkeypatch.setattr(cost, "has_gpus", lambda: True)
    assert cost.begin(on_gpus) == "ray"
    monkeypatch.setattr(cost, "has_gpus", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cost.begin(many) == "ray"
