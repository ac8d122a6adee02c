"""The scorer against a plain forward written here, one sequence at a time, in float64."""

import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEVICE, make_policy_folder, make_rows
from transformers import AutoModelForCausalLM

from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.lm_head import LmHead
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.policies.policy import Policy
from dlogp_ray.scoring.reference import reference_logp, reference_statistics
from dlogp_ray.scoring.scorer import PairScorer

# The scorer works in float32: logits below 30 carry 30 * 2^-24 = 2e-6 and come out of two layers
# with a few hundred roundings; divergences weigh 24 of them. 1e-4 is ten times what is seen.
TOLERANCE = 1e-4
TEXTS = [
    TokenSequence(np.array(row["prompt_ids"], np.int32), np.array(row["response_ids"], np.int32))
    for row in make_rows(12)
]


@pytest.fixture(scope="module")
def policies(policy_folders: dict[str, Path]) -> dict[str, Policy]:
    return {name: load(name, folder) for name, folder in policy_folders.items()}


def load(name: str, folder: Path) -> Policy:
    return Policy.load(resolve(name, str(folder)), device=DEVICE)


def plain_distributions(folder: Path, text: TokenSequence) -> list[list[float]]:
    """Probabilities over the vocabulary for each response token: the model run on its prefix."""
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    ids = [*text.prompt_ids.tolist(), *text.response_ids.tolist()]
    out = []
    for end in range(len(text.prompt_ids), len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:end]])).logits[0, -1].tolist()
        total = sum(math.exp(x) for x in logits)
        out.append([math.exp(x) / total for x in logits])
    return out


def expected_row(p: list[float], q: list[float], y: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What base (p) and rl (q) should say of token y, term by term."""
    top_p, top_q = p.index(max(p)), q.index(max(q))
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

    def kl(left: list[float], right: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(left, right, strict=True))

    def alone(d: list[float]) -> dict[str, Any]:
        return {
            "logp": math.log(d[y]),
            "entropy": -sum(a * math.log(a) for a in d),
            "max_logp": math.log(max(d)),
            "rank": sum(a > d[y] for a in d),
            "top1_id": d.index(max(d)),
            "outside": 0.0,
        }

    pair = {
        "kl_rl_base": kl(q, p),
        "kl_base_rl": kl(p, q),
        "js": (kl(p, m) + kl(q, m)) / 2,
        "top1_agree": top_p == top_q,
        "logp_base_of_rl_top1": math.log(p[top_q]),
        "rank_base_of_rl_top1": sum(a > p[top_q] for a in p),
    }
    return alone(p), alone(q) | pair


def test_every_column_is_that_of_the_plain_forward(
    policies: dict[str, Policy], policy_folders: dict[str, Path]
) -> None:
    texts = TEXTS[:4]
    scored = PairScorer(policies, base="base", token_budget=64).score(texts)
    for text, result in zip(texts, scored, strict=True):
        base, rl = (plain_distributions(policy_folders[name], text) for name in ("base", "rl"))
        rows = [
            expected_row(p, q, int(y)) for p, q, y in zip(base, rl, text.response_ids, strict=True)
        ]
        for policy, of_policy in zip(("base", "rl"), zip(*rows, strict=True), strict=True):
            assert result[policy].keys() == of_policy[0].keys()
            for name, values in result[policy].items():
                wanted = [row[name] for row in of_policy]
                np.testing.assert_allclose(
                    values.astype(float), wanted, atol=TOLERANCE, rtol=0, err_msg=name
                )


def test_the_reference_is_the_plain_forward(policy_folders: dict[str, Path]) -> None:
    text = TEXTS[0]
    prompt, response = text.prompt_ids.tolist(), text.response_ids.tolist()
    logp = {
        name: reference_logp(AutoModelForCausalLM.from_pretrained(folder), prompt, response)
        for name, folder in policy_folders.items()
    }
    found = reference_statistics(logp["base"], logp["rl"], response)
    base, rl = (plain_distributions(policy_folders[name], text) for name in ("base", "rl"))
    for t, (p, q, y) in enumerate(zip(base, rl, response, strict=True)):
        of_base, of_rl = expected_row(p, q, y)
        for name in ("logp", "entropy", "max_logp", "rank", "top1_id"):
            # float64 on both sides: 1e-9 leaves a million roundings
            assert found[f"{name}_base"][t] == pytest.approx(of_base[name], abs=1e-9)
            assert found[f"{name}_rl"][t] == pytest.approx(of_rl[name], abs=1e-9)
        assert found["delta_logp"][t] == pytest.approx(math.log(q[y] / p[y]), abs=1e-9)
        for name in of_rl.keys() - of_base.keys():
            assert found[name][t] == pytest.approx(of_rl[name], abs=1e-9), name


def test_the_reference_by_hand() -> None:
    # base (1/2, 1/2), rl (1/4, 3/4), token 1: worked out in tests/policies/test_statistics.py
    found = reference_statistics(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]]), [1])
    assert found["delta_logp"] == pytest.approx(math.log(1.5))
    assert found["kl_rl_base"] == pytest.approx(0.75 * math.log(3) - math.log(2))
    assert found["kl_base_rl"] == pytest.approx(math.log(2) - 0.5 * math.log(3))
    assert found["entropy_base"] == pytest.approx(math.log(2))


def test_a_policy_does_not_differ_from_its_copy(
    policies: dict[str, Policy], policy_folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(policy_folders["base"], tmp_path / "copy")
    pair = {"base": policies["base"], "copy": load("copy", copy)}
    for result in PairScorer(pair, base="base", token_budget=64).score(TEXTS):
        # the same operations on the same numbers: not small, but exactly 0
        assert not (result["copy"]["logp"] - result["base"]["logp"]).any()
        for name in ("kl_rl_base", "kl_base_rl", "js"):
            assert not result["copy"][name].any(), name
        assert result["copy"]["top1_agree"].all()


@pytest.mark.parametrize("token_budget", [16, pytest.param(64, marks=pytest.mark.slow), 4096])
def test_neither_order_nor_batches_change_a_score(
    token_budget: int, policies: dict[str, Policy]
) -> None:
    alone = [PairScorer(policies, base="base", token_budget=1).score([text])[0] for text in TEXTS]
    order = list(range(len(TEXTS)))
    random.Random(token_budget).shuffle(order)
    together = PairScorer(policies, base="base", token_budget=token_budget).score(
        [TEXTS[i] for i in order]
    )
    for index, result in zip(order, together, strict=True):
        for policy, values in result.items():
            for name, value in values.items():
                # Other shapes let the matrix products add in another order: roundings of 2^-24
                # of logits of up to 10, a few of which do not cancel.
                np.testing.assert_allclose(
                    value.astype(float),
                    alone[index][policy][name].astype(float),
                    atol=1e-5,
                    err_msg=f"{policy} {name}",
                )


def test_a_sequence_longer_than_the_budget_is_scored(policies: dict[str, Policy]) -> None:
    long = TokenSequence(np.arange(2, 7, dtype=np.int32), np.full(40, 3, np.int32))
    scored = PairScorer(policies, base="base", token_budget=8).score([TEXTS[0], long])
    assert scored[1]["rl"]["logp"].shape == (40,)
    assert np.isfinite(scored[1]["rl"]["logp"]).all()


def test_nothing_to_score(policies: dict[str, Policy]) -> None:
    assert PairScorer(policies, base="base", token_budget=8).score([]).columns == {}


def test_the_base_runs_once_however_many_are_compared(
    policies: dict[str, Policy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = policies | {"later": load("later", make_policy_folder(tmp_path, seed=2))}
    body_calls: list[str] = []
    head_rows = dict.fromkeys(three, 0)
    hidden, logits = Policy.hidden_packed, LmHead.logits

    def counted_hidden(self: Policy, ids: Any, layout: Any) -> Any:
        body_calls.append(self.name)
        return hidden(self, ids, layout)

    def counted_logits(self: LmHead, states: Any, out: Any, *, compiled: bool) -> Any:
        name = next(name for name, policy in three.items() if policy.lm_head is self)
        head_rows[name] += len(states)
        return logits(self, states, out, compiled=compiled)

    monkeypatch.setattr(Policy, "hidden_packed", counted_hidden)
    monkeypatch.setattr(LmHead, "logits", counted_logits)
    scored = PairScorer(three, base="base", token_budget=4096).score(TEXTS)
    # 12 texts of at most 37 tokens are one batch; the heads see the response tokens, each once
    assert sorted(body_calls) == ["base", "later", "rl"]
    tokens = sum(len(text.response_ids) for text in TEXTS)
    assert head_rows == {"base": tokens, "rl": tokens, "later": tokens}
    assert {"kl_rl_base", "js"} <= scored[0]["later"].keys() & scored[0]["rl"].keys()


def test_a_policy_alone_has_its_own_statistics(policies: dict[str, Policy]) -> None:
    alone = PairScorer({"rl": policies["rl"]}, base=None, token_budget=64).score(TEXTS)
    pair = PairScorer(policies, base="base", token_budget=64).score(TEXTS)
    for mine, both in zip(alone, pair, strict=True):
        assert mine["rl"].keys() == both["base"].keys()  # what a base has: no pair statistics
        for name, value in mine["rl"].items():
            np.testing.assert_array_equal(value, both["rl"][name], err_msg=name)


def test_policies_of_different_hidden_sizes(policies: dict[str, Policy], tmp_path: Path) -> None:
    folder = make_policy_folder(tmp_path, seed=3, hidden_size=48, num_hidden_layers=1)
    wide = load("wide", folder)
    text = TEXTS[1]
    pair = {"base": policies["base"], "wide": wide}
    result = PairScorer(pair, base="base", token_budget=64).score([text])[0]
    wanted = [
        math.log(p[y])
        for p, y in zip(plain_distributions(folder, text), text.response_ids, strict=True)
    ]
    np.testing.assert_allclose(result["wide"]["logp"], wanted, atol=TOLERANCE)


def test_temperature_divides_the_logits(
    policies: dict[str, Policy], policy_folders: dict[str, Path]
) -> None:
    text = TEXTS[2]
    scorer = PairScorer({"rl": policies["rl"]}, base=None, token_budget=64, temperature=0.5)
    found = scorer.score([text])[0]["rl"]["logp"]
    # at T = 1/2, π(y) becomes π(y)² / Σ π²
    wanted = [
        math.log(p[y] ** 2 / sum(a * a for a in p))
        for p, y in zip(
            plain_distributions(policy_folders["rl"], text), text.response_ids, strict=True
        )
    ]
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
