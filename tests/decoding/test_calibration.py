"""Thresholds of wanted rates: against counting, and statistics against full forward passes."""

import math

import numpy as np
import pytest
import torch
from plain_forward import logits_after

from dlogp_ray.decoding.batch import Prompt
from dlogp_ray.decoding.calibration import rule_statistics, threshold
from dlogp_ray.decoding.distribution import Distribution
from dlogp_ray.decoding.loop import PairedDecoder
from dlogp_ray.decoding.rules import RULES, Intervention, Rule, Seen
from dlogp_ray.policies.policy import Policy

ABOVE = Rule(lambda seen: seen.gate)
BELOW = Rule(lambda seen: seen.gate, fires="below")


@pytest.mark.parametrize("rate", [0.005, 0.1, 0.4])
@pytest.mark.parametrize("rule", [ABOVE, BELOW])
def test_a_threshold_fires_at_its_rate(rule: Rule, rate: float) -> None:
    values = np.random.default_rng(0).normal(size=1_000).astype(np.float32)
    found = threshold(rule, values, rate)
    assert found.value is not None
    fired = values >= found.value if rule is ABOVE else values <= found.value
    assert fired.mean() == found.reached == pytest.approx(rate)


def test_thresholds_by_hand() -> None:
    values = np.array([5.0, 1, 4, 2, 3])
    assert threshold(ABOVE, values, 0.4).value == 3.5
    assert threshold(BELOW, values, 0.4).value == 2.5


def test_equal_values_fire_together_or_not_at_all() -> None:
    values = np.array([9.0, 5, 5, 5, 1, 0, 0, 0, 0, 0])
    found = threshold(ABOVE, values, 0.2)
    assert (found.value, found.reached) == (7.0, 0.1)
    none = threshold(ABOVE, np.array([5.0, 5, 5, 1]), 0.5)
    assert none.value is None
    assert none.reason == (
        "75.0% of the tokens have the same value, the first to fire; give a rate above 0.75, or a "
        "threshold"
    )


def test_a_rate_that_needs_a_threshold_of_the_wrong_sign_has_none() -> None:
    # three of ten tokens are lowered: 20 % can be had, 40 % can't
    values = np.array([-3.0, -2, -1, 1, 2, 3, 4, 5, 6, 7])
    assert threshold(RULES["delta_logp"], values, 0.2).value == -1.5
    found = threshold(RULES["delta_logp"], values, 0.4)
    assert found.value is None
    assert "threshold of 1.5, outside of (-inf, 0): only 30.0% of the tokens" in str(found.reason)


def test_a_rate_of_less_than_a_token_has_no_threshold() -> None:
    found = threshold(ABOVE, np.arange(10.0), 0.01)
    assert found.reason == (
        "a rate of 0.01 is less than one of 10 tokens; give a higher one, or more "
        "calibration_problems"
    )


@pytest.mark.parametrize("primary", ["base", "rl"])
def test_statistics_are_those_of_each_token_alone(
    primary: str, pair: tuple[Policy, Policy]
) -> None:
    wanted = [
        Prompt(f"p{i}", [3 + i, 5], (Intervention("never", primary=primary),)) for i in range(5)
    ]
    answers = list(PairedDecoder(*pair, max_tokens=6, rows=2).decode(wanted))
    names = ("delta_logp", "kl", "js", "entropy_base", "entropy_rl")
    found = rule_statistics(*pair, primary, answers, {name: RULES[name] for name in names})
    expected: dict[str, list[float]] = {name: [] for name in names}
    for answer in answers:
        text = list(answer.prompt.ids)
        for y in answer.ids.tolist():
            base, rl = (Distribution(logits_after(p, text)) for p in pair)
            seen = Seen(base, rl, primary, torch.tensor([[y]]), torch.zeros(1, 1))
            for name in names:
                expected[name].append(float(RULES[name].statistic(seen)))
            text.append(y)
    for name in names:
        # the same sums in other batches
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4, err_msg=name)


def test_a_calibrated_rule_fires_at_its_rate_in_the_first_tokens(
    pair: tuple[Policy, Policy],
) -> None:
    """Before anything is replaced, texts are those of the calibration: the first tokens."""
    plain = [Prompt(f"p{i}", [2 + i % 20, 3], (Intervention("never"),)) for i in range(2_000)]
    decoder = PairedDecoder(*pair, max_tokens=1, rows=500)
    answers = list(decoder.decode(plain))
    rule = RULES["delta_logp"]
    values = rule_statistics(*pair, "base", answers, {"delta_logp": rule})["delta_logp"]
    found = threshold(rule, values, 0.1)
    assert 0.05 < found.reached <= 0.1  # equal values fire together
    again = [Prompt(p.problem, p.ids, (Intervention("delta_logp", found.value),)) for p in plain]
    fired = np.concatenate([answer.fired for answer in decoder.decode(again)])
    # the same draws; a statistic within rounding of the threshold may fall on its other side
    assert math.isclose(fired.mean(), found.reached, abs_tol=2e-3)
