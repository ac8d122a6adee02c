"""Rules and extrapolation, worked out by hand; what has no meaning is refused."""

import math

import pytest
import torch

from dlogp_ray.decoding.distribution import Distribution, Sampling
from dlogp_ray.decoding.mixture import next_token_distribution
from dlogp_ray.decoding.rules import RULES, Intervention, Rule, Seen, extrapolated

BASE = [0.5, 0.25, 0.125, 0.125]
RL = [0.125, 0.25, 0.5, 0.125]


def of(*rows: list[float]) -> Distribution:
    return Distribution(torch.tensor(rows).log())


def seen(primary: str, draft: int, gate: float = 0.5) -> Seen:
    drafts = torch.tensor([[draft]])
    return Seen(of(BASE), of(RL), primary, drafts, torch.tensor([[gate]], dtype=torch.float64))


def fires(rule: str, threshold: float | None, primary: str = "base", draft: int = 0) -> bool:
    return bool(Intervention(rule, threshold, primary).fired(seen(primary, draft)))


LN4 = math.log(4)
# KL(RL‖base) = ⅛ ln ¼ + ½ ln 4 = ⅜ ln 4, and the same the other way, for these two
KL = 0.375 * LN4
# m = (5/16, 4/16, 5/16, 2/16); KL(base‖m) = ½ ln 1.6 + ⅛ ln 0.4, and the same for RL
JS = 0.5 * math.log(1.6) + 0.125 * math.log(0.4)
# both: ½ ln 2 + ¼ ln 4 + 2 · ⅛ ln 8 = 1.75 ln 2
ENTROPY = 1.75 * math.log(2)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("kl", KL),
        ("kl_base_rl", KL),
        ("js", JS),
        ("entropy_base", ENTROPY),
        ("entropy_rl", ENTROPY),
    ],
)
def test_rules_of_the_distributions_fire_at_and_above_their_value(rule: str, value: float) -> None:
    assert fires(rule, value - 1e-6)
    assert not fires(rule, value + 1e-6)


def test_the_two_divergences_are_not_taken_for_one_another() -> None:
    base, rl = of([0.5, 0.5]), of([0.9, 0.1])
    found = [
        float(
            RULES[name].statistic(
                Seen(base, rl, "base", torch.zeros(1, 1).long(), torch.zeros(1, 1))
            )
        )
        for name in ("kl", "kl_base_rl")
    ]
    rl_base = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    base_rl = 0.5 * math.log(5 / 9) + 0.5 * math.log(5)
    assert found == pytest.approx([rl_base, base_rl], abs=1e-6)


@pytest.mark.parametrize(
    ("primary", "draft", "delta"),
    [
        ("base", 0, -LN4),  # RL gives id 0 a quarter of what base gives
        ("base", 1, 0.0),
        ("base", 2, LN4),
        ("rl", 0, LN4),  # backward: base steps in where RL raised
        ("rl", 2, -LN4),
    ],
)
def test_delta_logp_looks_at_the_draft_from_the_primary_side(
    primary: str, draft: int, delta: float
) -> None:
    statistic = RULES["delta_logp"].statistic(seen(primary, draft))
    assert float(statistic) == pytest.approx(delta, abs=1e-6)
    assert fires("delta_logp", -1.0, primary, draft) is (delta <= -1.0)


def test_random_fires_where_its_number_is_small_enough() -> None:
    random = Intervention("random", 0.3)
    assert bool(random.fired(seen("base", 0, gate=0.2999)))
    assert not bool(random.fired(seen("base", 0, gate=0.3001)))


def test_always_and_never() -> None:
    assert fires("always", None)
    assert not fires("never", None)


def test_a_rule_of_the_users_own() -> None:
    def base_disagrees(at: Seen) -> torch.Tensor:
        same = at.base.logits.argmax(-1) == at.rl.logits.argmax(-1)
        return (~same).float()[:, None]

    mine = Intervention("disagree", 0.5, custom=Rule(base_disagrees))
    assert bool(mine.fired(seen("base", 0)))


def test_extrapolation_by_hand() -> None:
    # π_RL · (π_RL/π_base)^γ with γ = ½: ⅛·½, ¼·1, ½·2, ⅛·1 = 1/16, 4/16, 16/16, 2/16
    logits = extrapolated(of(BASE), of(RL), 0.5)
    expected = torch.tensor([[1, 4, 16, 2]]) / 23
    torch.testing.assert_close(torch.softmax(logits, -1), expected)


def test_gamma_0_is_the_rl_policy_even_where_base_gives_nothing() -> None:
    base, rl = of([1.0, 0.0]), of([0.5, 0.5])
    assert torch.equal(extrapolated(base, rl, 0.0), rl.logits)


def test_gamma_that_makes_a_distribution_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma 0\.1 gives a distribution that is not finite"):
        extrapolated(of([1.0, 0.0]), of([0.5, 0.5]), 0.1)
    with pytest.raises(ValueError, match="not finite"):
        extrapolated(of(BASE), of(RL), 3e38)


def test_an_id_that_rl_cannot_draw_stays_out() -> None:
    probabilities = torch.softmax(extrapolated(of([0.5, 0.5, 0.0]), of([1.0, 0.0, 0.0]), 0.5), -1)
    assert probabilities.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("rule", "threshold", "message"),
    [
        ("delta_logp", 0.4, "expected a threshold between -inf and 0, got 0.4"),
        ("kl", -0.1, "between 0 and inf"),
        ("js", 0.7, "between 0 and 0.693147"),
        ("entropy_rl", 0.0, "between 0 and inf, got 0"),
        ("random", 1.5, "between 0 and 1"),
        ("delta_logp", math.nan, "got nan"),
        ("kl", None, "rule kl needs a threshold"),
        ("always", 0.5, "takes no threshold"),
        ("entropy", 0.5, "expected a rule of delta_logp, kl,"),
    ],
)
def test_thresholds_without_meaning_are_refused(
    rule: str, threshold: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Intervention(rule, threshold)


@pytest.mark.parametrize("gamma", [math.nan, math.inf, -0.1])
def test_gammas_without_meaning_are_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="expected a finite gamma of at least 0"):
        Intervention("delta_logp", -0.5, gamma=gamma)


def test_an_extrapolated_rl_draft_is_gated_by_the_distributions_alone() -> None:
    with pytest.raises(ValueError, match="looks at the draft"):
        Intervention("delta_logp", -0.5, "rl", gamma=0.1)
    Intervention("kl", 0.1, "rl", gamma=0.1)


def test_the_exact_distribution_of_a_replacement_by_hand() -> None:
    # Δ ≤ −1 on id 0 alone: its ½ goes to RL: ½·⅛, ¼ + ½·¼, ⅛ + ½·½, ⅛ + ½·⅛
    found = next_token_distribution(Intervention("delta_logp", -1.0), of(BASE), of(RL), Sampling())
    assert found[0].tolist() == pytest.approx([0.0625, 0.375, 0.375, 0.1875])


def test_the_exact_distribution_of_a_random_replacement_by_hand() -> None:
    found = next_token_distribution(Intervention("random", 0.5), of(BASE), of(RL), Sampling())
    expected = [(b + r) / 2 for b, r in zip(BASE, RL, strict=True)]
    assert found[0].tolist() == pytest.approx(expected)


def test_filters_apply_to_what_is_drawn_and_not_to_the_rule() -> None:
    # top-p 0.7 leaves base ids 0 and 1 (⅔, ⅓) and RL ids 1 and 2 (⅓, ⅔); the rule still sees
    # Δ(0) = −ln 4: ⅔ of the draws are drawn again
    found = next_token_distribution(
        Intervention("delta_logp", -1.38), of(BASE), of(RL), Sampling(top_p=0.7)
    )
    assert found[0].tolist() == pytest.approx([0, 1 / 3 + 2 / 9, 4 / 9, 0], abs=1e-6)
