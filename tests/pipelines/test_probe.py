"""What the probe chooses by measurement, on a node that it is told of."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_rows, write_jsonl

from dlogp_ray.pipelines.run.placement import Node, Placement
from dlogp_ray.pipelines.score import probe as probing
from dlogp_ray.pipelines.score.actor import ScoreUnit
from dlogp_ray.pipelines.score.job import ScoreJob
from dlogp_ray.pipelines.score.plan import plan_score
from dlogp_ray.pipelines.score.probe import _choose_threads, _probe
from dlogp_ray.policies.linear import KernelLinear
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.scoring.engine import ACTOR_BYTES, Engine
from dlogp_ray.scoring.noise import measure_noise
from dlogp_ray.scoring.scorer import PairScorer
from dlogp_ray.tables.noise import NoiseFloor
from tests.pipelines.conftest import MakeConfig


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """The probe sets those of its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def job(make_config: MakeConfig, tmp_path: Path) -> ScoreJob:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", make_rows(3))
    config = make_config(corpus=str(corpus), actors=None)
    return plan_score(config).job


LONG, SHORT = 10**9, 1_000
"""Tokens of an actor."""


def choose(job: ScoreJob, actors_in_memory: int, tokens: int) -> Engine:
    unit = ScoreUnit(job, "cpu")
    memory = float(actors_in_memory) * (unit.policies_bytes + ACTOR_BYTES)
    engine = job.default_engine("cpu")
    return _choose_threads(unit, job, engine, Node(2, memory), tokens)


def test_the_faster_number_of_threads_is_chosen_and_both_are_recorded(job: ScoreJob) -> None:
    engine = choose(job, 2, LONG)
    assert engine.tokens_per_s.keys() == {"2 x 1 threads", "1 x 2 threads"}
    one, two = engine.tokens_per_s["2 x 1 threads"], engine.tokens_per_s["1 x 2 threads"]
    assert engine.threads == (1 if one >= two else 2)


def test_a_short_job_takes_as_few_as_memory_allows(job: ScoreJob) -> None:
    assert choose(job, 2, SHORT).threads == 1
    assert choose(job, 1, SHORT).threads == 2
    assert not choose(job, 2, SHORT).tokens_per_s


@pytest.mark.slow
def test_what_compiling_changed_is_gone_where_it_does_not_pay(
    job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise floor is that of the engine that the run gets."""
    seen: list[PairScorer] = []

    def noise(scorer: PairScorer, texts: Sequence[TokenSequence], rounding_s: float) -> NoiseFloor:
        seen.append(scorer)
        return measure_noise(scorer, texts, rounding_s)

    monkeypatch.setattr(probing, "measure_noise", noise)
    monkeypatch.setattr(probing, "compiling_pays", lambda *_: False)
    auto = replace(job, config=job.config.model_copy(update={"compile": "auto"}))
    units = plan_score(job.config).units
    tried, _ = _probe(auto, Placement(1, 1, 1, 0), Node(2, 2.0**34), LONG, list(units))
    assert tried.engine.tokens_per_s.keys() >= {"eager", "compiled"}
    assert not tried.engine.compiled
    assert tried.tokens_per_s == tried.engine.tokens_per_s["eager"]
    (scorer,) = seen
    assert not scorer._compiled
    policies = scorer._policies.values()
    modules = [m for policy in policies for m in policy._model.modules()]
    assert not any(m._compiled_call_impl or isinstance(m, KernelLinear) for m in modules)


@pytest.mark.parametrize("tokens", [SHORT, LONG])
def test_float32_may_take_15_s_or_a_twentieth_of_the_job(
    tokens: int, job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    job = replace(job, config=job.config.model_copy(update={"compile": "off"}))
    monkeypatch.setattr(probing, "measure_noise", lambda *all_of_it: given.append(all_of_it[2]))
    units = plan_score(job.config).units
    seen, _ = _probe(job, Placement(1, 1, 1, 0), Node(2, 2.0**34), tokens, list(units))
    assert given == [pytest.approx(max(15, tokens / seen.tokens_per_s / 20))]
