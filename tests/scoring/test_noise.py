"""The noise floor: of perturbations that are known, and of tiny policies in two dtypes."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, make_policy_folder, make_rows
from torch import Tensor

from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.packing import TokenSequence, count_tokens
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.split import Batching
from dlogp_ray.scoring import noise as noise_module
from dlogp_ray.scoring.noise import compare
from dlogp_ray.scoring.scorer import Arrays, PairScorer, Scored
from dlogp_ray.tables.noise import NoiseFloor, Rounding, Spread

measure_noise = partial(noise_module.measure_noise, rounding_s=1e6)
"""With all the time that it takes, on a busy machine too."""

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

    @property
    def lower_dtype(self) -> str | None:
        return None


def test_a_perturbation_of_one_composition_is_the_floor() -> None:
    noise = measure_noise(Perturbed(), four_texts())
    assert (noise.texts, noise.tokens) == (4, 100)
    # rl moves by three steps an id and the base by one, so that Δ moves by two
    for name, factor in (("logp_base", 1), ("logp_rl", 3), ("delta_logp", 2), ("js", 2)):
        found = noise.rebatched["rl"][name]
        assert (found.rms, found.p99) == about(times(STEPS, factor)), name
    # no step in the one composition against one in the other
    for name in ("delta_logp", "js"):
        found = noise.base_against_base[name]
        assert (found.rms, found.p99) == about(STEPS), name
    # The largest of them; of float32 there is no third part.
    assert noise.rounding == Rounding()
    assert noise.unresolved_nats == 2 * 99 * STEP
    assert noise.floors == {
        "logp_base": 99 * STEP,
        "logp_rl": 3 * 99 * STEP,
        "delta_logp": 2 * 99 * STEP,
        "js": 2 * 99 * STEP,
    }


class Clock:
    """Time as scorers let it go by."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Rounded(Perturbed):
    """In float32 base is two steps an id less, and rl five more; there a token takes ten seconds,
    else one."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self.clock = clock or Clock()
        self.in_float32: list[TokenSequence] = []

    @property
    def lower_dtype(self) -> str | None:
        return "bfloat16"

    def hidden(
        self, sequences: Sequence[TokenSequence], token_budget: int | None = None
    ) -> dict[str, Tensor]:
        self.clock.now += count_tokens(sequences)
        return super().hidden(sequences, token_budget)

    def hidden_in_float32(self, sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
        self.clock.now += 10 * count_tokens(sequences)
        self.in_float32 += sequences
        ids = torch.from_numpy(np.concatenate([s.response_ids for s in sequences]))
        return {name: ids[:, None] * STEP * times for name, times in (("base", -2), ("rl", 5))}


def four_texts() -> list[TokenSequence]:
    """Of 10, 1, 49 and 40 tokens with prompts of 2: ids 1 to 100, each once."""
    ids = np.random.default_rng(0).permutation(np.arange(1, 101, dtype=np.int32))
    return [TokenSequence(np.array([5, 7], np.int32), part) for part in np.split(ids, [10, 11, 60])]


def test_what_the_dtype_changes_is_the_third_part_of_the_floor() -> None:
    noise = measure_noise(Rounded(), four_texts())
    assert noise.rounding is not None
    assert (noise.rounding.texts, noise.rounding.tokens) == (4, 100)
    for name, factor in (("logp_base", 2), ("logp_rl", 5), ("delta_logp", 7), ("js", 7)):
        found = noise.rounding.spreads["rl"][name]
        assert (found.rms, found.p99) == about(times(STEPS, factor)), name
    assert noise.unresolved_nats == 7 * 99 * STEP
    assert noise.floors == {
        "logp_base": 2 * 99 * STEP,
        "logp_rl": 5 * 99 * STEP,
        "delta_logp": 7 * 99 * STEP,
        "js": 7 * 99 * STEP,
    }


@pytest.mark.parametrize(
    ("seconds", "texts", "tokens"),
    [
        # A token takes 11 s in both; a prompt of 2 and 8 of a response come first.
        (110 + 11 * 108, 4, 100),
        (110 + 11 * (12 + 3 + 51), 3, 60),
        (110 + 11 * (12 + 3 + 51) - 1, 2, 11),
        (110 + 11 * 12, 1, 10),
        (110 + 11 * 12 - 1, 1, 9),
        (110, 1, 8),
    ],
)
def test_as_many_of_the_first_texts_as_there_is_time_for(
    seconds: float, texts: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, rounding = measured_within(seconds, monkeypatch)
    assert rounding.problem is None
    assert (rounding.texts, rounding.tokens) == (texts, tokens)
    beginning, *others = scorer.in_float32
    assert len(beginning.response_ids) == 8
    counted = others or [beginning]
    assert rounding.tokens == sum(len(text.response_ids) for text in counted)
    for text, whole in zip(counted, four_texts(), strict=False):
        assert np.array_equal(text.prompt_ids, whole.prompt_ids)
        assert np.array_equal(text.response_ids, whole.response_ids[: len(text.response_ids)])


def measured_within(seconds: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Rounded, Rounding]:
    clock = Clock()
    monkeypatch.setattr(noise_module, "time", clock)
    monkeypatch.setattr(noise_module, "float32_slowdown", lambda _dtype, _device: 10.0)
    scorer = Rounded(clock)
    rounding = noise_module.measure_noise(scorer, four_texts(), float(seconds)).rounding
    assert rounding is not None
    return scorer, rounding


def test_where_there_is_no_time_for_a_token_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, rounding = measured_within(109, monkeypatch)
    assert scorer.in_float32 == []
    assert rounding == Rounding(problem="a few tokens in float32 take longer than 109 s")


def test_a_model_that_can_not_be_cast_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Rounded, sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
        raise RuntimeError("expected m1 and m2 to have\nthe same dtype")

    monkeypatch.setattr(Rounded, "hidden_in_float32", fail)
    noise = measure_noise(Rounded(), four_texts())
    assert noise.lacks == (
        "rounding not measured: RuntimeError: expected m1 and m2 to have the same dtype"
    )
    assert noise.lacks in noise.as_row()[1]
    assert noise.unresolved_nats == 2 * 99 * STEP


def test_float32_that_is_not_finite_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(self: Rounded, sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
        rows = sum(len(s.response_ids) for s in sequences)
        return {name: torch.full((rows, 1), torch.nan) for name in ("base", "rl")}

    monkeypatch.setattr(Rounded, "hidden_in_float32", overflow)
    noise = measure_noise(Rounded(), four_texts())
    assert noise.lacks == "rounding not measured: no number in float32 is finite"


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
    assert noise.rounding is not None
    rounded = noise.rounding.spreads
    if dtype == "float32":
        assert noise.rounding == Rounding()
    else:
        assert (noise.rounding.texts, noise.rounding.tokens) == (len(TEXTS), TOKENS)
        assert rounded["rl"].keys() == noise.rebatched["rl"].keys()
        assert low < rounded["rl"]["delta_logp"].p99 < high
    assert noise.unresolved_nats == max(
        noise.base_against_base["delta_logp"].p99,
        *(parts["rl"]["delta_logp"].p99 for parts in (noise.rebatched, rounded) if parts),
    )


def test_the_third_part_is_what_the_same_weights_in_float32_show(tmp_path: Path) -> None:
    folders = {
        name: make_policy_folder(tmp_path / name, seed, dtype="bfloat16")
        for seed, name in enumerate(("base", "rl"))
    }
    half, single = (
        PairScorer(load(folders, dtype), base="base", token_budget=512)
        for dtype in ("bfloat16", "float32")
    )
    rounding = measure_noise(half, TEXTS).rounding
    assert rounding is not None
    scored = [scorer.score(TEXTS) for scorer in (half, single)]

    def column(scores: Scored, policy: str, key: str) -> np.ndarray:
        return np.concatenate([one[policy][key] for one in scores])

    for name, policy, key in (
        ("logp_base", "base", "logp"),
        ("entropy_rl", "rl", "entropy"),
        ("kl_rl_base", "rl", "kl_rl_base"),
    ):
        own, exact = (column(scores, policy, key) for scores in scored)
        found = rounding.spreads["rl"][name]
        # Beside 1e-2, float32 in other batches does not count: 1e-6.
        rms = float(np.sqrt(((own - exact) ** 2).mean()))
        assert found.rms == pytest.approx(rms, rel=1e-3)
        assert (np.abs(own - exact) > found.p99 * 1.001).mean() <= 0.01
        assert (np.abs(own - exact) > found.p99 * 0.999).mean() >= 0.01


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
    base = noise.base_against_base["delta_logp"].p99
    assert base == pytest.approx(noise.rebatched["rl"]["logp_base"].p99, rel=1e-2)
    # To leading order in the change δ of log p, KL is ½ E[δ²] in both directions and JS ⅛ E[δ²].
    forward, backward, js = (
        noise.base_against_base[name].rms for name in ("kl_rl_base", "kl_base_rl", "js")
    )
    assert 0 < forward < base**2
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
    assert noise.unresolved_nats is not None
    # The lm head's products over other numbers of rows: one unit in the last place of 2 to 4 nats.
    assert noise.unresolved_nats <= 2**-22


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


def spread(p99: float) -> Spread:
    return Spread(rms=p99 / 4, p99=p99)


def a_floor(rounding: Rounding | None, base: float = 3.14e-3, other: float = 4.4e-3) -> NoiseFloor:
    return NoiseFloor(
        texts=64,
        tokens=2048,
        rebatched={"rl": {"delta_logp": spread(other)}, "late": {"delta_logp": spread(other / 2)}},
        changed={"rl": {}, "late": {}},
        base_against_base={"delta_logp": spread(base)},
        rounding=rounding,
    )


ROUNDED = Rounding(
    texts=9,
    tokens=1317,
    spreads={"rl": {"delta_logp": spread(0.01)}, "late": {"delta_logp": spread(0.0444)}},
)
BATCHES = "99 % of 2,048 tokens: base against base 0.0031, other batches 0.0044"
NO_BIT = "other batches change no bit of log p"


@pytest.mark.parametrize(
    ("noise", "figure", "lacks"),
    [
        (a_floor(ROUNDED), f"below 0.044 nats ({BATCHES}; rounding 0.044, 1,317 tokens)", None),
        (a_floor(Rounding()), f"below 0.0044 nats ({BATCHES}; all in float32)", None),
        (
            a_floor(None),
            f"below 0.0044 nats ({BATCHES}; rounding not measured)",
            "rounding not measured",
        ),
        (
            a_floor(Rounding(problem="KeyError: 1")),
            f"below 0.0044 nats ({BATCHES}; rounding not measured: KeyError: 1)",
            "rounding not measured: KeyError: 1",
        ),
        (
            a_floor(ROUNDED, 0.0, 0.0),
            f"below 0.044 nats ({NO_BIT}, 2,048 tokens; rounding 0.044, 1,317 tokens)",
            None,
        ),
        (a_floor(Rounding(), 0.0, 0.0), f"nothing: {NO_BIT} (2,048 tokens)", None),
        (
            a_floor(None, 0.0, 0.0),
            f"below 0 nats ({NO_BIT}, 2,048 tokens; rounding not measured)",
            "rounding not measured",
        ),
    ],
)
def test_the_line_for_people_and_the_record(
    noise: NoiseFloor, figure: str, lacks: str | None
) -> None:
    assert noise.as_row() == ("unresolved", figure)
    assert noise.lacks == lacks
    assert NoiseFloor.model_validate(noise.model_dump(mode="json")) == noise


@pytest.mark.parametrize(
    ("p99", "rounding", "figure"),
    [
        (
            0.002,
            Rounding(texts=1, tokens=9, spreads={"base": {"logp_base": spread(0.03)}}),
            "within 0.03 nats (99 % of 2,048 tokens: other batches 0.002; rounding 0.03, 9 tokens)",
        ),
        (
            2e-6,
            Rounding(),
            "within 2e-06 nats (99 % of 2,048 tokens: other batches 2e-06; all in float32)",
        ),
        (0.0, Rounding(), f"exactly: {NO_BIT} (2,048 tokens)"),
    ],
)
def test_the_line_of_a_policy_alone(p99: float, rounding: Rounding, figure: str) -> None:
    noise = NoiseFloor(
        texts=64,
        tokens=2048,
        rebatched={"base": {"logp_base": spread(p99)}},
        changed={"base": {}},
        base_against_base={},
        rounding=rounding,
    )
    assert noise.as_row() == ("repeatable", figure)


def test_one_token_in_a_thousand_is_not_nothing() -> None:
    """The 99th percentile is 0, and something changed."""
    noise = a_floor(Rounding(), 0.0, 0.0)
    seldom = noise.model_copy(update={"base_against_base": {"delta_logp": Spread(rms=1e-9, p99=0)}})
    assert seldom.as_row()[1].startswith("below 0 nats")


def test_a_record_without_the_third_part_is_read() -> None:
    record = a_floor(Rounding()).model_dump(mode="json")
    del record["rounding"]
    assert NoiseFloor.model_validate(record) == a_floor(None)
