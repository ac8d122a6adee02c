"""torch.compile: room for all policies of a process, and a word where it gives up."""

import inspect
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from conftest import make_adapter, make_policy_folder
from torch._dynamo.utils import counters
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from dlogp_ray.policies import compiling
from dlogp_ray.policies.adapter_files import resolve_adapter
from dlogp_ray.policies.adapters import load_policies
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.compiling import given_up, with_room
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.policies.policy import Policy
from dlogp_ray.scoring import statistics
from dlogp_ray.scoring.scorer import PairScorer

TORCH_S_OWN = 8
"""torch._dynamo.config.recompile_limit."""


@pytest.fixture(autouse=True)
def nothing_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling._watch, "functions", set())


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each form is traced and guarded as ever, and runs as it is: milliseconds, not seconds."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.mark.slow
def test_policies_of_more_kinds_than_torch_s_limit_are_all_compiled(tmp_path: Path) -> None:
    base = make_policy_folder(tmp_path / "base", seed=0)
    under = resolve("base", str(base))
    checkpoints = {"base": under}
    for rank in range(1, TORCH_S_OWN + 1):  # a kind each, beside the base's
        config = peft.LoraConfig(r=rank, target_modules=["q_proj"])
        folder = make_adapter(tmp_path / f"{rank}", base, config, seed=rank)
        checkpoints[f"{rank}"] = resolve_adapter(f"{rank}", str(folder), base=under)
    policies = load_policies(checkpoints)
    scorer = PairScorer(policies, base="base", token_budget=64)
    texts = [TokenSequence(np.array([3, 4, 5]), np.arange(2, 12))]
    plain = scorer.score(texts)[0]
    before = dict(counters["frames"])
    for policy in policies.values():
        policy.compile()
    found = scorer.score(texts)[0]
    frames = {name: counters["frames"][name] - before.get(name, 0) for name in ("total", "ok")}
    assert frames["total"] == frames["ok"] >= len(policies)
    assert given_up() == []
    for name in policies:
        np.testing.assert_allclose(found[name]["logp"], plain[name]["logp"], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_pair_with_more_kinds_of_layers_and_passes_than_that_is_compiled() -> None:
    """Recurrence and attention, one token and several, one text of a batch and several."""
    policies = {}
    for seed, name in enumerate(("base", "rl")):
        torch.manual_seed(seed)
        config = RecurrentGemmaConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            lru_width=32,
            attention_window_size=8,
            bos_token_id=0,
            eos_token_id=1,
        )
        policies[name] = Policy(name, RecurrentGemmaForCausalLM(config))
    scorer = PairScorer(policies, base="base", token_budget=32)
    rng = np.random.default_rng(0)
    before = dict(counters["frames"])
    for policy in policies.values():
        policy.compile()
    for lengths in ([(5, 20), (3, 9)], [(1, 1)], [(1, 2)], [(4, 3)] * 4, [(2, 1), (1, 30)]):
        parts = [(rng.integers(2, 60, p), rng.integers(2, 60, r)) for p, r in lengths]
        scorer.score([TokenSequence(*part) for part in parts])
    frames = {name: counters["frames"][name] - before.get(name, 0) for name in ("total", "ok")}
    assert frames["total"] == frames["ok"] > TORCH_S_OWN
    assert given_up() == []


def of_kind(x: torch.Tensor, kind: str) -> torch.Tensor:
    """A form for each kind."""
    return x + len(kind)


def kinds(n: int) -> list[str]:
    return ["k" * i for i in range(n)]


def test_there_is_room_in_every_thread() -> None:
    torch._dynamo.reset_code(of_kind.__code__)
    run = with_room(torch.compile(of_kind, dynamic=True))
    with ThreadPoolExecutor(1) as thread:
        found = [float(one) for one in thread.map(run, [torch.zeros(())] * 12, kinds(12))]
    assert found == list(range(12))
    assert given_up() == []


def test_what_it_gives_up_is_remembered_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset_code(of_kind.__code__)
    monkeypatch.setattr(compiling, "FORMS", 2)
    monkeypatch.setattr(compiling, "_policies", 2)
    run = with_room(torch.compile(of_kind, dynamic=True))
    for kind in kinds(4):
        run(torch.zeros(()), kind)
    assert given_up() == []
    assert run(torch.zeros(()), "k" * 4) == 4
    assert given_up() == ["of_kind"]


def test_a_pass_of_any_size_takes_one_of_two_forms(
    policy_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several tokens, and of one: of the layers, which both policies share, and three sums."""
    monkeypatch.setattr(statistics, "_compile", statistics._compile.__wrapped__)
    policies = {n: Policy.load(resolve(n, str(f))) for n, f in policy_folders.items()}
    for function in (statistics.normaliser, statistics.own_sums, statistics.pair_sums):
        torch._dynamo.reset_code(inspect.unwrap(function).__code__)
    rng = np.random.default_rng(0)
    before = counters["frames"]["ok"]
    for budget in (24, 64):
        scorer = PairScorer(policies, base="base", token_budget=budget)
        scorer.compile()
        for prompt, response in ((1, 1), (1, 2), (5, 20), (3, 50), (4, 1)):
            texts = [np.split(rng.integers(2, 24, prompt + response), [prompt]) for _ in range(3)]
            scorer.score([TokenSequence(*text) for text in texts])
            scorer.score([TokenSequence(*texts[0])])
    assert counters["frames"]["ok"] - before <= 4 * 2
    assert given_up() == []
