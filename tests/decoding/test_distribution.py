"""Distributions, filters and draws: against float64, transformers' own filters, and by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dlogp_ray.decoding.distribution import Distribution, Sampling, draw

# float32 sums of a few hundred numbers: relative errors of some 1e-7, values up to 20 nats
ATOL = 1e-5


@pytest.fixture(scope="module")
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(50, 300) * 3, torch.randn(50, 300) * 3


def test_statistics_are_those_of_float64(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    one, two = (Distribution(x) for x in logits)
    a, b = (log_softmax(x.double().numpy(), axis=-1) for x in logits)
    m = np.logaddexp(a, b) - math.log(2)
    expected = {
        "entropy": -(np.exp(a) * a).sum(-1),
        "kl": rel_entr(np.exp(a), np.exp(b)).sum(-1),
        "js": 0.5 * (rel_entr(np.exp(a), np.exp(m)) + rel_entr(np.exp(b), np.exp(m))).sum(-1),
    }
    found = {"entropy": one.entropy, "kl": one.kl(two), "js": one.js(two)}
    for name, values in found.items():
        np.testing.assert_allclose(values.numpy(), expected[name], atol=ATOL, err_msg=name)
    ids = torch.tensor([[3, 299]]).expand(50, 2)
    np.testing.assert_allclose(one.logp_of(ids).numpy(), a[:, [3, 299]], atol=ATOL)


def test_ids_that_cannot_be_drawn_add_nothing() -> None:
    one = Distribution(torch.tensor([[0.0, 0.0, -torch.inf]]))
    two = Distribution(torch.tensor([[0.0, -torch.inf, -torch.inf]]))
    assert float(one.entropy) == pytest.approx(math.log(2))
    assert float(two.kl(one)) == pytest.approx(math.log(2))
    assert float(one.kl(two)) == math.inf
    # m = (3/4, 1/4): ½ (½ ln ⅔ + ½ ln 2) + ½ ln 4/3
    expected = 0.5 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2)) + 0.5 * math.log(4 / 3)
    assert float(one.js(two)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6},
        {"top_k": 7},
        {"top_p": 0.7},
        {"top_p": 0.95},
        {"min_p": 0.2},
        {"temperature": 1.7, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
    ],
)
def test_filters_are_those_of_transformers(
    settings: dict[str, Any], logits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    kinds = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    scores = logits[0].clone()
    for name, value in settings.items():
        scores = kinds[name](value)(None, scores)
    expected = torch.softmax(scores, -1)
    found = Sampling(**settings).apply(logits[0])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(found > 0, expected > 0)


def test_a_nucleus_of_more_ids_than_are_tried_first() -> None:
    logits = torch.zeros(2, 1_000)  # uniform: 0.7 of it are 700 ids
    logits[1, 5] = 50.0  # and one alone
    found = Sampling(top_p=0.7).apply(logits)
    assert (found > 0).sum(-1).tolist() == [700, 1]


def test_draws_by_hand() -> None:
    # shares [0, .25), [.25, .25), [.25, .75), [.75, 1)
    probabilities = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(7, 4)
    numbers = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.74995, 0.9, 1 - 2**-53], dtype=torch.float64)
    ids, close = draw(probabilities, numbers)
    assert ids.tolist() == [0, 0, 2, 2, 2, 3, 3]
    # 0.2499 is 1e-4 below .25 but for rounding; 0.25 is on the edge; the ends have no neighbour
    assert close.tolist()[2:] == [True, False, True, False, False]
    assert close.tolist()[0] is False


def test_an_id_without_probability_is_never_drawn() -> None:
    probabilities = torch.tensor([[0.0, 1.0, 0.0]]).expand(3, 3)
    ids, _ = draw(probabilities, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64))
    assert ids.tolist() == [1, 1, 1]


def test_roundings_of_the_sum_leave_no_number_outside() -> None:
    torch.manual_seed(0)
    probabilities = torch.softmax(torch.randn(100, 50_000), -1)
    numbers = torch.full((100,), 1 - 2**-53, dtype=torch.float64)
    ids, _ = draw(probabilities, numbers)
    assert ids.tolist() == [49_999] * 100
