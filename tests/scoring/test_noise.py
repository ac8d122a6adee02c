"""The noise floor: of perturbations that are known, and of tiny policies in two dtypes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, make_policy_folder, make_rows
from torch import Tensor

from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.split import Batching
from dlogp_ray.scoring.noise import compare, measure_noise
from dlogp_ray.scoring.packing import TokenSequence
from dlogp_ray.scoring.scorer import Arrays, PairScorer
from dlogp_ray.tables.noise import NoiseFloor, Spread

TEXTS = [
    TokenSequence(np.array(row["prompt_ids"], np.int32), np.array(row["response_ids"], np.int32))
    for row in make_rows(40)
]
TOKENS = sum(len(text.response_ids) for text in TEXTS)

# |difference| of 1 to 100 steps: exactly one value in a hundred lies above 99 of them, and
# Σ k² = 100 · 101 · 201 / 6.
STEP = 2.0**-10
STEPS = Spread(rms=STEP * math.sqrt(101 * 201 / 6), p99=99 * STEP)


def times(spread: Spread, factor: float) -> Spread:
    return Spread(rms=spread.rms * factor, p99=spread.p99 * factor)


def about(spread: Spread) -> tuple[object, object]:
    return pytest.approx(spread.rms, rel=1e-12), spread.p99


@pytest.fixture(scope="module")
def exact(policy_folders: dict[str, Path]) -> dict[str, Policy]:
    return load(policy_folders, "float32")


def load(folders: Mapping[str, Path], dtype: str) -> dict[str, Policy]:
    return {
        name: Policy.load(resolve(name, str(f)), dtype=dtype, device=DEVICE)
        for name, f in folders.items()
    }


def test_rms_and_percentile_by_hand() -> None:
    steps = np.arange(1, 101, dtype=np.float32) * np.float32(STEP)
    signs = np.where(np.arange(100) % 2, 1, -1).astype(np.float32)
    ids = np.zeros(100, np.int32)
    first = {"logp_rl": np.zeros(100, np.float32), "top1_id_rl": ids, "outside_rl": steps}
    second = {"logp_rl": signs * steps, "top1_id_rl": ids + (np.arange(100) < 7), "outside_rl": ids}
    spreads, changed = compare(first, second)
    assert (spreads["logp_rl"].rms, spreads["logp_rl"].p99) == about(STEPS)
    assert changed == {"top1_id_rl": 0.07}
    assert set(spreads) == {"logp_rl"}  # what is no column of the table has no floor


def test_values_that_the_job_rejects_are_left_out() -> None:
    first = {"logp_rl": np.array([-1.0, -np.inf, np.nan, -2.0], np.float32)}
    second = {"logp_rl": np.array([-1.0, -np.inf, -1.0, -2.5], np.float32)}
    spreads, _ = compare(first, second)
    assert spreads == {"logp_rl": Spread(rms=math.sqrt(0.25 / 2), p99=0.5)}
    assert compare({"js": first["logp_rl"][1:2]}, {"js": second["logp_rl"][1:2]}) == ({}, {})


class Perturbed(PairScorer):
    """Hidden states are log p itself: 0, and in other batches a step for each id (three for rl)."""

    def __init__(self) -> None:
        self.base = "base"

    def hidden(
        self, sequences: Sequence[TokenSequence], token_budget: int | None = None
    ) -> dict[str, Tensor]:
        ids = torch.from_numpy(np.concatenate([s.response_ids for s in sequences]))
        step = 0.0 if token_budget is None else STEP
        return {name: ids[:, None] * step * times for name, times in (("base", 1), ("rl", 3))}

    def statistics(self, hidden: Mapping[str, Tensor], targets: np.ndarray) -> dict[str, Arrays]:
        logp = {name: states[:, 0].numpy() for name, states in hidden.items()}
        return {
            name: {"logp": values} | ({"js": values - logp["base"]} if name != "base" else {})
            for name, values in logp.items()
        }

    def base_twice(self, again: str) -> PairScorer:
        return self


def test_a_perturbation_of_one_composition_is_the_floor() -> None:
    ids = np.random.default_rng(0).permutation(np.arange(1, 101, dtype=np.int32))
    texts = [
        TokenSequence(np.array([5, 7], np.int32), part) for part in np.split(ids, [10, 11, 60])
    ]
    noise = measure_noise(Perturbed(), texts)
    assert (noise.texts, noise.tokens) == (4, 100)
    # rl moves by three steps an id and the base by one, so that Δ moves by two
    for name, factor in (("logp_base", 1), ("logp_rl", 3), ("delta_logp", 2), ("js", 2)):
        found = noise.rebatched["rl"][name]
        assert (found.rms, found.p99) == about(times(STEPS, factor)), name
    # no step in the one composition against one in the other
    for name in ("delta_logp", "js"):
        found = noise.base_against_base[name]
        assert (found.rms, found.p99) == about(STEPS), name
    assert noise.unresolved_nats == 99 * STEP


# Logits of about 2 from hidden states of a relative rounding of 2^-24 or 2^-9, of which a few
# add up: around 1e-6 and 1e-2.
@pytest.mark.parametrize(("dtype", "low", "high"), [("float32", 1e-8, 1e-5), ("bfloat16", 1e-3, 1)])
def test_every_float_column_has_a_floor_that_is_the_dtype_s(
    dtype: str, low: float, high: float, policy_folders: dict[str, Path]
) -> None:
    policies = load(policy_folders, dtype)
    noise = measure_noise(PairScorer(policies, base="base", token_budget=512), TEXTS)
    assert (noise.texts, noise.tokens) == (len(TEXTS), TOKENS)
    assert set(noise.rebatched["rl"]) == {
        *(f"{name}_{policy}" for name in ("logp", "entropy", "max_logp") for policy in policies),
        *("delta_logp", "kl_rl_base", "kl_base_rl", "js", "logp_base_of_rl_top1"),
    }
    assert set(noise.changed["rl"]) == {
        *(f"{name}_{policy}" for name in ("rank", "top1_id") for policy in policies),
        *("top1_agree", "rank_base_of_rl_top1"),
    }
    assert set(noise.base_against_base) == {"delta_logp", "kl_rl_base", "kl_base_rl", "js"}
    for spread in (noise.base_against_base["delta_logp"], noise.rebatched["rl"]["delta_logp"]):
        assert low < spread.p99 < high
        assert 0 < spread.rms < spread.p99
    assert noise.unresolved_nats == noise.base_against_base["delta_logp"].p99


def test_the_figures_are_what_scoring_twice_shows(policy_folders: dict[str, Path]) -> None:
    # In bfloat16, beside whose 1e-2 it does not count what the lm head adds in float32: 1e-6.
    policies = load(policy_folders, "bfloat16")
    noise = measure_noise(PairScorer(policies, base="base", token_budget=512), TEXTS)
    together = PairScorer(policies, base="base", token_budget=512).score(TEXTS)
    second = []
    for text in TEXTS:
        ids = np.concatenate([text.prompt_ids, text.response_ids])
        # The first token is a prompt, all others follow it: passes of 1 and len(ids) - 2 tokens.
        scorer = PairScorer(policies, base="base", token_budget=max(1, len(ids) - 2))
        scored = scorer.score([TokenSequence(ids[:1], ids[1:])])[0]
        last = slice(-len(text.response_ids), None)
        second.append({p: {k: v[last] for k, v in of_p.items()} for p, of_p in scored.items()})
    for column, policy, key in (
        ("logp_base", "base", "logp"),
        ("logp_rl", "rl", "logp"),
        ("js", "rl", "js"),
    ):
        pairs = zip(together, second, strict=True)
        difference = np.concatenate([b[policy][key] - a[policy][key] for a, b in pairs])
        found = noise.rebatched["rl"][column]
        assert found.rms == pytest.approx(float(np.sqrt((difference**2).mean())), rel=1e-2)
        assert (np.abs(difference) > found.p99 * 1.01).mean() <= 0.01
        assert (np.abs(difference) > found.p99 * 0.9).mean() >= 0.01
    # Δ of the base against itself is what its log p moved.
    assert noise.unresolved_nats is not None
    assert noise.unresolved_nats == pytest.approx(noise.rebatched["rl"]["logp_base"].p99, rel=1e-2)
    # To leading order in the change δ of log p, KL is ½ E[δ²] in both directions and JS ⅛ E[δ²].
    forward, backward, js = (
        noise.base_against_base[name].rms for name in ("kl_rl_base", "kl_base_rl", "js")
    )
    assert 0 < forward < noise.unresolved_nats**2
    assert backward == pytest.approx(forward, rel=0.05)
    assert js == pytest.approx(forward / 4, rel=0.05)


def test_with_one_composition_the_base_does_not_differ_from_itself(tmp_path: Path) -> None:
    # Positions that depend on the length of the text: each runs alone, whatever the budget.
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    folders = {
        name: make_policy_folder(tmp_path / name, seed, rope_parameters=rope)
        for seed, name in enumerate(("base", "rl"))
    }
    policies = load(folders, "float32")
    assert policies["base"].batching is Batching.ALONE
    noise = measure_noise(PairScorer(policies, base="base", token_budget=512), TEXTS)
    zero = Spread(rms=0.0, p99=0.0)
    names = ("delta_logp", "kl_rl_base", "kl_base_rl", "js")
    assert noise.base_against_base == dict.fromkeys(names, zero)
    assert noise.unresolved_nats == 0


@pytest.mark.parametrize("name", ["base", "rl"])
def test_a_policy_alone_has_no_pair_s_floor(name: str, exact: dict[str, Policy]) -> None:
    noise = measure_noise(PairScorer({name: exact[name]}, base=None, token_budget=512), TEXTS)
    assert set(noise.rebatched) == {name}
    assert set(noise.rebatched[name]) == {
        f"{key}_{name}" for key in ("logp", "entropy", "max_logp")
    }
    assert noise.base_against_base == {}
    assert noise.unresolved_nats is None
    heading, text = noise.as_row()
    assert heading == "repeatable"
    assert f"within {noise.rebatched[name][f'logp_{name}'].p99:.2g} nats" in text


def test_several_policies_each_have_their_own(exact: dict[str, Policy], tmp_path: Path) -> None:
    late = Policy.load(resolve("late", str(make_policy_folder(tmp_path, seed=2))))
    noise = measure_noise(PairScorer(exact | {"late": late}, base="base", token_budget=512), TEXTS)
    assert set(noise.rebatched) == set(noise.changed) == {"rl", "late"}
    rl, late_columns = noise.rebatched["rl"], noise.rebatched["late"]
    assert rl["logp_base"] == late_columns["logp_base"]  # of one and the same base
    assert rl["logp_rl"] != late_columns["logp_rl"]


def test_sampled_tokens_only(exact: dict[str, Policy]) -> None:
    scorer = PairScorer(exact, base="base", token_budget=512, sampled_only=True)
    noise = measure_noise(scorer, TEXTS)
    assert set(noise.rebatched["rl"]) == {"logp_base", "logp_rl", "delta_logp"}
    assert noise.changed == {"rl": {}}
    assert set(noise.base_against_base) == {"delta_logp"}
    assert noise.unresolved_nats == pytest.approx(
        measure_noise(PairScorer(exact, base="base", token_budget=512), TEXTS).unresolved_nats
    )


def test_one_text_of_one_token(exact: dict[str, Policy]) -> None:
    text = TokenSequence(np.array([3], np.int32), np.array([4], np.int32))
    noise = measure_noise(PairScorer(exact, base="base", token_budget=512), [text])
    assert (noise.texts, noise.tokens) == (1, 1)


def test_the_line_for_people_and_the_record() -> None:
    delta = Spread(rms=1.2e-6, p99=3.14e-6)
    noise = NoiseFloor(
        texts=64,
        tokens=2048,
        rebatched={"rl": {"logp_rl": delta}},
        changed={"rl": {}},
        base_against_base={"delta_logp": delta},
    )
    assert " ".join(noise.as_row()) == (
        "unresolved below 3.1e-06 nats (99 % of base against base, 2,048 tokens)"
    )
    assert NoiseFloor.model_validate(noise.model_dump(mode="json")) == noise


def test_the_line_where_batches_change_nothing() -> None:
    none = Spread(rms=0.0, p99=0.0)
    noise = NoiseFloor(
        texts=4,
        tokens=808,
        rebatched={"rl": {"logp_rl": none}},
        changed={"rl": {}},
        base_against_base={"delta_logp": none},
    )
    line = "other batches change no bit of log p (808 tokens)"
    assert noise.as_row() == ("unresolved", f"nothing: {line}")
    alone = noise.model_copy(update={"base_against_base": {}})
    assert alone.as_row() == ("repeatable", f"exactly: {line}")
    # One token in a thousand: the 99th percentile is 0, and something changed.
    seldom = noise.model_copy(update={"base_against_base": {"delta_logp": Spread(rms=1e-9, p99=0)}})
    assert seldom.as_row()[1].startswith("below 0 nats")
