"""The schemes against examples worked out by hand, float64 loops, and TRL's own entropy mask."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dlogp_ray.weights import schemes

LN2 = math.log(2)
# Two texts: probabilities 1/2, 1/4, 1 and 1/8, 1/2; the second ends one position earlier, and what
# stands in its padding must not matter.
LOGP = np.array([[-LN2, -2 * LN2, 0.0], [-3 * LN2, -LN2, math.nan]])
MASK = np.array([[1, 1, 1], [1, 1, 0]])


def both(values: Any) -> list[Any]:
    """The same numbers for NumPy and for torch, with a gradient that nothing may ask for."""
    tensor = torch.tensor(values)
    return [np.asarray(values), tensor.requires_grad_(tensor.is_floating_point())]


def close(found: Any, expected: Any) -> None:
    """float32 results of a few operations on numbers about 1: within 4 units in the last place."""
    assert str(found.dtype).endswith("float32")
    assert not getattr(found, "requires_grad", False)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=5e-7, atol=5e-7)


@pytest.mark.parametrize("logp", both(LOGP), ids=["numpy", "torch"])
def test_low_prob_by_hand(logp: Any) -> None:
    # 1 + 0.2(1 - 1/2) = 1.1, 1 + 0.2·3/4 = 1.15, 1; 1 + 0.2·7/8 = 1.175, 1.1, padding 1.
    mask = MASK if isinstance(logp, np.ndarray) else torch.tensor(MASK)
    close(schemes.low_prob(logp, mask, alpha=0.2), [[1.1, 1.15, 1], [1.175, 1.1, 1]])


@pytest.mark.parametrize("logp", both(LOGP), ids=["numpy", "torch"])
def test_dominate_by_hand(logp: Any) -> None:
    # 0.2/2 + 0.8 = 0.9, 0.2/4 + 0.8 = 0.85, 1; 0.2/8 + 0.8 = 0.825, 0.9.
    mask = MASK if isinstance(logp, np.ndarray) else torch.tensor(MASK)
    close(schemes.dominate(logp, mask, alpha=0.2), [[0.9, 0.85, 1], [0.825, 0.9, 1]])


@pytest.mark.parametrize("logp", both(LOGP), ids=["numpy", "torch"])
def test_ppl_by_hand(logp: Any) -> None:
    # log PPL: (1 + 2 + 0)/3 = 1 and (3 + 1)/2 = 2, times ln 2; mean 1.5 ln 2, std over n - 1
    # ln 2/√2. Scores -1/√2 and +1/√2, so weights 1 ± 0.1/√2 = 1.0707, 0.9293; clamped from below.
    numpy = isinstance(logp, np.ndarray)
    mask = MASK if numpy else torch.tensor(MASK)
    found = schemes.log_ppl(logp, mask)
    close(found, [LN2, 2 * LN2])
    kind = np.asarray if numpy else torch.tensor
    mean, std = kind([1.5 * LN2] * 2), kind([LN2 / math.sqrt(2)] * 2)
    up, down = 1 + 0.1 / math.sqrt(2), 1 - 0.1 / math.sqrt(2)
    close(
        schemes.ppl(logp, mask, mean=mean, std=std, alpha=0.1),
        [[up, up, up], [down, down, 1]],
    )
    close(
        schemes.ppl(logp, mask, mean=mean, std=std, alpha=0.1, low=0.95, high=1.05),
        [[1.05, 1.05, 1.05], [0.95, 0.95, 1]],
    )
    # No spread in the second text's group.
    close(
        schemes.ppl(logp, mask, mean=mean, std=kind([std[0], 0.0]), alpha=0.1),
        [[up, up, up], [1, 1, 1]],
    )


@pytest.mark.parametrize("entropy", both([[0.1, 0.5, 0.3], [0.5, 0.2, 9.0]]), ids=["np", "torch"])
def test_entropy_top_by_hand(entropy: Any) -> None:
    # Of 0.1 0.2 0.3 0.5 0.5 the (1 - 0.4) quantile is between 0.3 and 0.5: both 0.5 are kept.
    mask = MASK if isinstance(entropy, np.ndarray) else torch.tensor(MASK)
    assert schemes.upper_quantile_rank(5, 0.4) == 3
    close(schemes.entropy_top(entropy, mask, threshold=0.5), [[0, 1, 0], [1, 0, 1]])


def test_the_entropy_quantile_keeps_what_trl_keeps() -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer

    one_process = SimpleNamespace(pad_across_processes=lambda x, **_: x, gather=lambda x: x)
    trl = GRPOTrainer.get_high_entropy_mask
    generator = torch.Generator().manual_seed(0)
    for length, rho in [(1, 0.2), (5, 0.2), (11, 0.2), (50, 0.1), (64, 0.5), (33, 1.0)]:
        # Few different values, so that many are equal; quarters, so that quantiles are exact.
        entropy = torch.randint(0, 9, (3, length), generator=generator) / 4
        mask = torch.ones(3, length, dtype=torch.int64)
        mask[1, length // 2 + 1 :] = 0
        values = entropy[mask.bool()].sort().values
        threshold = float(values[schemes.upper_quantile_rank(len(values), rho)])
        found = schemes.entropy_top(entropy, mask, threshold=threshold) * mask
        theirs = trl(SimpleNamespace(accelerator=one_process), entropy, mask, 1 - rho)
        assert torch.equal(found.bool(), theirs), (length, rho)


@pytest.mark.parametrize("old", both(LOGP), ids=["numpy", "torch"])
def test_divergence_by_hand(old: Any) -> None:
    # r = 2, 1, 1/2 and 2, 1: r - 1 - ln r = 1 - ln 2, 0, ln 2 - 1/2. With s = 2 and alpha = 10 the
    # sigmoids are 1/(1 + e^-10·2^10), 1/2 and 1/(1 + e^5/2^10), and weights 2·sigmoid.
    up, down = 2 / (1 + 2**10 / math.e**10), 2 / (1 + math.e**5 / 2**10)
    numpy = isinstance(old, np.ndarray)
    mask = MASK if numpy else torch.tensor(MASK)
    ratio = np.array([[2, 1, 0.5], [2, 1, 1]])
    current = old + (np.log(ratio) if numpy else torch.tensor(np.log(ratio)))
    found = schemes.k3(old, current)
    np.testing.assert_allclose(np.asarray(found)[0], [1 - LN2, 0, LN2 - 0.5], atol=3e-7)
    weights = schemes.divergence(found, mask, scale=2.0, alpha=10.0)
    # Errors of the divergence, about 1e-7 of ln r, are multiplied by up to s·alpha/4 = 5.
    np.testing.assert_allclose(np.asarray(weights), [[up, 1, down], [up, 1, 1]], atol=2e-6)


@pytest.mark.parametrize("shift", both([[LN2, 0, -LN2], [5.0, 0.0, 9.0]]), ids=["numpy", "torch"])
def test_delta_by_hand(shift: Any) -> None:
    # exp: 2, 1, 1/2, mean 7/6: 12/7, 6/7, 3/7. e⁵ is clipped to 3: 3, 1, mean 2: 1.5, 0.5.
    mask = MASK if isinstance(shift, np.ndarray) else torch.tensor(MASK)
    close(
        schemes.delta(shift, mask, beta=1.0, low=0.1, high=3.0),
        [[12 / 7, 6 / 7, 3 / 7], [1.5, 0.5, 1]],
    )


@pytest.mark.parametrize("logp", both(LOGP), ids=["numpy", "torch"])
def test_rsi_band_by_hand(logp: Any) -> None:
    # -log p in ln 2: 1 2 0 and 3 1. Entropies 1, 1, 1 and 0 (not defined: weighs 1), 2: ratios
    # 1 2 0, -, 1/2.
    numpy = isinstance(logp, np.ndarray)
    mask = MASK if numpy else torch.tensor(MASK)
    entropy = np.array([[LN2, LN2, LN2], [0, 2 * LN2, math.nan]])
    entropy = entropy if numpy else torch.tensor(entropy)
    close(schemes.rsi_band(logp, entropy, mask, low=0.4, high=1.5), [[1, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("old", both(LOGP), ids=["numpy", "torch"])
def test_future_kl_by_hand(old: Any) -> None:
    # Shifts ln 2 · (1, 2, 4) with half-life 1: sums 1 + 1 + 1 = 3, 2 + 2 = 4, 4; exp: 8, 16, 16.
    # Second text, negative advantage, shifts ln 2 · (-1, 2): the ratio 4 is above 3, so its token
    # is left out: sums -1, weights 1/2 and 1.
    numpy = isinstance(old, np.ndarray)
    kind = np.asarray if numpy else torch.tensor
    mask = MASK if numpy else torch.tensor(MASK)
    current = old + kind(np.array([[1, 2, 4], [-1, 2, 0]]) * LN2)
    close(
        schemes.future_kl(
            old,
            current,
            mask,
            half_life=1.0,
            low=0.1,
            high=10.0,
            max_ratio=3.0,
            advantages=kind([1.0, -1.0]),
        ),
        [[8, 10, 10], [0.5, 1, 1]],
    )


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 700])
def test_discounted_sums_are_those_of_a_loop(length: int) -> None:
    values = np.random.default_rng(length).normal(size=(3, length))
    expected = np.zeros((3, length + 1))
    for t in range(length - 1, -1, -1):
        expected[:, t] = values[:, t] + 0.97 * expected[:, t + 1]
    for some in (values.astype(np.float32), torch.tensor(values, dtype=torch.float32)):
        found = np.asarray(schemes.discounted_sums(some, 0.97))
        # A dot product of 128 numbers is within 128 roundings (2^-24) of the sum of its terms'
        # absolute values, here about 1/(1 - 0.97) numbers about 1.
        np.testing.assert_allclose(found, expected[:, :length], atol=33 * 128 * 2**-24)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_combine_and_mean_one_by_hand(kind: Any) -> None:
    one, other = kind([[1.0, 2.0, 1.0]]), kind([[3.0, 0.5, 1.0]])
    product = schemes.combine(one, other)
    np.testing.assert_array_equal(np.asarray(product), [[3, 1, 1]])
    # Mean of 3 and 1 is 2; the third position is padding.
    close(schemes.mean_one(product, kind([[1, 1, 0]])), [[1.5, 0.5, 1]])
    close(schemes.mean_one(kind([[0.0, 0.0, 2.0]]), kind([[1, 1, 0]])), [[0, 0, 1]])
    with pytest.raises(ValueError, match="at least one"):
        schemes.combine()


ZERO, ONE = np.zeros((1, 2)), np.ones(1)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: schemes.low_prob(ZERO, ZERO, alpha=-0.1), "alpha"),
        (lambda: schemes.low_prob(ZERO, ZERO, alpha=math.nan), "alpha"),
        (lambda: schemes.low_prob(ZERO, ZERO, alpha=1e39), "alpha"),
        (lambda: schemes.ppl(ZERO, ZERO, mean=ONE, std=ONE, alpha=0.1, low=math.nan), "low"),
        (lambda: schemes.ppl(ZERO, ZERO, mean=ONE, std=ONE, alpha=0.1, high=math.inf), "high"),
        (
            lambda: schemes.ppl(ZERO, ZERO, mean=ONE, std=ONE, alpha=0.1, min_spread=math.inf),
            "min_spread",
        ),
        (lambda: schemes.dominate(ZERO, ZERO, alpha=1.5), "alpha"),
        (
            lambda: schemes.ppl(ZERO, ZERO, mean=ONE, std=ONE, alpha=0.1, low=2.0, high=1.0),
            "low 2 is more than high 1",
        ),
        (lambda: schemes.divergence(ZERO, ZERO, scale=1.0, alpha=0.0), "alpha"),
        (lambda: schemes.delta(ZERO, ZERO, beta=math.inf, low=0.0, high=1.0), "beta"),
        (
            lambda: schemes.delta(ZERO, ZERO, beta=1.0, low=3.0, high=1.0),
            "low 3 is more than high 1",
        ),
        (lambda: schemes.rsi_band(ZERO, ZERO, ZERO, low=-1.0, high=1.0), "low"),
        (
            lambda: schemes.future_kl(ZERO, ZERO, ZERO, half_life=0.0, low=1.0, high=1.2),
            "half_life",
        ),
        (
            lambda: schemes.future_kl(
                ZERO, ZERO, ZERO, half_life=1.0, low=1.0, high=1.2, max_ratio=0.5
            ),
            "max_ratio",
        ),
    ],
)
def test_parameters_are_checked(call: Any, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        call()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="advantages"):
        schemes.future_kl(ZERO, ZERO, ZERO, half_life=1.0, low=1.0, high=1.2, max_ratio=3.0)
