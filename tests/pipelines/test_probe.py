"""What the probe chooses by measurement, on a node that it is told of."""

from pathlib import Path

import pytest

from dlogp_ray.pipelines.actor import ScoreUnit
from dlogp_ray.pipelines.cluster import Node
from dlogp_ray.pipelines.planning import ScoreJob, plan_score
from dlogp_ray.pipelines.probe import _choose_threads
from dlogp_ray.scoring.engine import ACTOR_BYTES, Engine
from tests.conftest import make_rows, write_jsonl
from tests.pipelines.conftest import MakeConfig


@pytest.fixture
def job(make_config: MakeConfig, tmp_path: Path) -> ScoreJob:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", make_rows(3))
    config = make_config(corpus=str(corpus), actors=None)
    return plan_score(config).job


def choose(job: ScoreJob, actors_in_memory: int, *, trying: bool) -> Engine:
    unit = ScoreUnit(job, "cpu")
    memory = float(actors_in_memory) * (unit.policies_bytes + ACTOR_BYTES)
    engine = job.default_engine("cpu")
    return _choose_threads(unit, job, engine, Node(2, memory), trying=trying)


def test_the_faster_number_of_threads_is_chosen_and_both_are_recorded(job: ScoreJob) -> None:
    engine = choose(job, 2, trying=True)
    assert engine.tokens_per_s.keys() == {"2 x 1 threads", "1 x 2 threads"}
    one, two = engine.tokens_per_s["2 x 1 threads"], engine.tokens_per_s["1 x 2 threads"]
    assert engine.threads == (1 if one >= two else 2)


def test_a_short_job_takes_as_few_as_memory_allows(job: ScoreJob) -> None:
    assert choose(job, 2, trying=False).threads == 1
    assert choose(job, 1, trying=False).threads == 2
    assert not choose(job, 2, trying=False).tokens_per_s
