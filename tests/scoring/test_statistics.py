"""Per-token statistics: distributions small enough to work out by hand, and what must hold always.

With the identity as the lm head, hidden states are logits, so each test states probabilities.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dlogp_ray.policies.lm_head import LmHead
from dlogp_ray.scoring import statistics
from dlogp_ray.scoring.statistics import Statistics, chunk_rows, score_rows

LN2 = math.log(2)
# float32 carries 1.2e-7 of each number; the sums here have a handful of terms of size 1.
NEAR = 1e-6


def score(
    base: list[list[float]], rl: list[list[float]], targets: list[int], temperature: float = 1.0
) -> dict[str, Statistics]:
    """Statistics of two policies that are given as probabilities; 0 is a logit of −inf."""
    hidden, heads = {}, {}
    for name, rows in (("base", base), ("rl", rl)):
        probability = torch.tensor(rows)
        possible = (probability > 0).all(0)
        hidden[name] = torch.where(possible, probability.log(), 0.0)
        # As heads mask their padding ids: with the bias (0 * -inf in the product would be NaN).
        bias = torch.where(possible, 0.0, -math.inf)
        heads[name] = LmHead(torch.eye(probability.shape[1]), bias=bias)
    return score_rows(hidden, heads, torch.tensor(targets), base="base", temperature=temperature)


def test_two_tokens_by_hand() -> None:
    # base (1/2, 1/2), rl (1/4, 3/4), target id 1
    out = score([[0.5, 0.5]], [[0.25, 0.75]], [1])
    expected_base = {"logp": -LN2, "entropy": LN2, "max_logp": -LN2}
    expected_rl = {
        "logp": math.log(0.75),
        "entropy": 0.25 * math.log(4) + 0.75 * math.log(4 / 3),
        "max_logp": math.log(0.75),
        # 1/4 ln(1/2) + 3/4 ln(3/2) = 3/4 ln 3 - ln 2 = 0.1308
        "kl_rl_base": 0.75 * math.log(3) - LN2,
        # 1/2 ln 2 + 1/2 ln(2/3) = ln 2 - 1/2 ln 3 = 0.1438
        "kl_base_rl": LN2 - 0.5 * math.log(3),
        # m = (3/8, 5/8); base/m = (4/3, 4/5), rl/m = (2/3, 6/5)
        "js": 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5))
        + 0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)),
        "logp_base_of_rl_top1": -LN2,
    }
    for name, value in expected_base.items():
        assert float(out["base"][name]) == pytest.approx(value, abs=NEAR), name
    for name, value in expected_rl.items():
        assert float(out["rl"][name]) == pytest.approx(value, abs=NEAR), name


def test_ranks_and_first_choices_by_hand() -> None:
    # rl's first choice, id 2, is the last of base's three: two ids are above base's 0.2, and
    # none of rl's own is (0.1, 0.15 and 0.75)
    out = score([[0.5, 0.3, 0.2]], [[0.1, 0.15, 0.75]], [1])
    assert (int(out["base"]["rank"]), int(out["rl"]["rank"])) == (1, 1)
    assert (int(out["base"]["top1_id"]), int(out["rl"]["top1_id"])) == (0, 2)
    assert not bool(out["rl"]["top1_agree"])
    assert int(out["rl"]["rank_base_of_rl_top1"]) == 2
    assert float(out["rl"]["logp_base_of_rl_top1"]) == pytest.approx(math.log(0.2), abs=NEAR)


def test_a_rank_counts_only_strictly_higher_ids() -> None:
    # ids 1, 2, 3 tie below id 0: each of them has rank 1, whichever is the target
    tied = [0.4, 0.2, 0.2, 0.2]
    out = score([tied] * 4, [tied] * 4, [0, 1, 2, 3])
    assert out["base"]["rank"].tolist() == [0, 1, 1, 1]
    # all tied: nothing is strictly higher, and the first choice is the lowest id
    flat = score([[0.25] * 4], [[0.25] * 4], [3])["base"]
    assert (int(flat["rank"]), int(flat["top1_id"])) == (0, 0)


def test_masked_padding_ids_leave_everything_finite() -> None:
    # id 2 has a logit of -inf in both: the statistics are those of the two-token case
    padded = score([[0.5, 0.5, 0.0]], [[0.25, 0.75, 0.0]], [1])
    plain = score([[0.5, 0.5]], [[0.25, 0.75]], [1])
    for policy, values in plain.items():
        for name, value in values.items():
            torch.testing.assert_close(padded[policy][name], value, msg=f"{policy} {name}")


def test_an_id_that_only_the_base_masks_makes_the_kl_infinite_but_not_nan() -> None:
    # base (1, 0), rl (1/2, 1/2): KL(rl||base) = inf, KL(base||rl) = ln 2,
    # m = (3/4, 1/4): JS = 1/2 ln(4/3) + 1/2 (1/2 ln(2/3) + 1/2 ln 2)
    out = score([[1.0, 0.0]], [[0.5, 0.5]], [0])["rl"]
    assert float(out["kl_rl_base"]) == math.inf
    assert float(out["kl_base_rl"]) == pytest.approx(LN2, abs=NEAR)
    js = 0.5 * math.log(4 / 3) + 0.25 * (math.log(2 / 3) + LN2)
    assert float(out["js"]) == pytest.approx(js, abs=NEAR)


def test_disjoint_supports_have_the_largest_js() -> None:
    out = score([[1.0, 0.0]], [[0.0, 1.0]], [0])["rl"]
    assert float(out["js"]) == pytest.approx(LN2, abs=1e-7)


logits = arrays(np.float32, (3, 7), elements=st.floats(-30, 30, width=32))


@given(logits)
def test_equal_policies_differ_by_exactly_nothing(values: np.ndarray) -> None:
    hidden = {name: torch.from_numpy(values.copy()) for name in ("base", "rl")}
    heads = {name: LmHead(torch.eye(7)) for name in hidden}
    out = score_rows(hidden, heads, torch.tensor([0, 3, 6]), base="base")["rl"]
    for name in ("kl_rl_base", "kl_base_rl", "js"):
        assert out[name].tolist() == [0.0, 0.0, 0.0], name
    assert out["top1_agree"].all()


@given(logits, logits)
def test_divergences_against_their_definitions_in_float64(a: np.ndarray, b: np.ndarray) -> None:
    hidden = {"base": torch.from_numpy(a.copy()), "rl": torch.from_numpy(b.copy())}
    heads = {name: LmHead(torch.eye(7)) for name in hidden}
    out = score_rows(hidden, heads, torch.tensor([0, 3, 6]), base="base")["rl"]
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(1, keepdims=True) for x in (a, b))
    m = (p + q) / 2
    js = ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)) / 2
    # logits up to 30 carry 30 * 2^-24 = 2e-6 each, and a divergence is up to 60 such differences
    assert np.allclose(out["kl_rl_base"].numpy(), (q * np.log(q / p)).sum(1), atol=5e-5)
    assert np.allclose(out["kl_base_rl"].numpy(), (p * np.log(p / q)).sum(1), atol=5e-5)
    assert np.allclose(out["js"].numpy(), js, atol=5e-5)
    assert (out["js"] >= 0).all()
    assert (out["js"] <= torch.tensor(LN2)).all()
    assert (out["kl_rl_base"] >= 0).all()


def test_heads_of_different_widths_are_compared_over_the_common_ids() -> None:
    # base: a third each; rl has a fourth id with 0.1
    third = 1 / 3
    out = score([[third] * 3], [[0.3, 0.3, 0.3, 0.1]], [0])
    assert float(out["base"]["outside"]) == 0.0
    assert float(out["rl"]["outside"]) == pytest.approx(0.1, abs=NEAR)
    # each policy over its own head: rl's logp is ln 0.3, not ln(0.3 / 0.9)
    assert float(out["rl"]["logp"]) == pytest.approx(math.log(0.3), abs=NEAR)
    assert float(out["rl"]["entropy"]) == pytest.approx(
        -0.9 * math.log(0.3) - 0.1 * math.log(0.1), abs=NEAR
    )
    # sum over three ids of 1/3 ln((1/3) / 0.3) = ln(10/9)
    assert float(out["rl"]["kl_base_rl"]) == pytest.approx(math.log(10 / 9), abs=NEAR)
    # 0.9 ln 0.9 is negative, because 0.1 is left out; a divergence is not
    assert float(out["rl"]["kl_rl_base"]) == 0.0


def test_the_first_choice_is_an_id_that_every_policy_has() -> None:
    out = score([[0.5, 0.3, 0.2]], [[0.2, 0.1, 0.1, 0.6]], [0])["rl"]
    assert int(out["top1_id"]) == 0
    assert float(out["max_logp"]) == pytest.approx(math.log(0.2), abs=NEAR)


def test_temperature_divides_the_logits() -> None:
    # dividing by 2 is exact in binary, so that not even rounding differs
    torch.manual_seed(0)
    hidden = {"base": torch.randn(5, 9) * 4, "rl": torch.randn(5, 9) * 4}
    heads = {name: LmHead(torch.eye(9)) for name in hidden}
    halved = {name: value / 2 for name, value in hidden.items()}
    targets = torch.arange(5)
    warm = score_rows(hidden, heads, targets, base="base", temperature=2.0)
    plain = score_rows(halved, heads, targets, base="base")
    for policy, values in plain.items():
        for name, value in values.items():
            assert torch.equal(warm[policy][name], value), name


@pytest.mark.parametrize("compiled", [False, pytest.param(True, id="compiled")])
@pytest.mark.parametrize("held_bytes", [1, 4_000, 10_000])
@pytest.mark.parametrize("tile_elements", [1, 2**17])
def test_results_do_not_depend_on_chunks_and_tiles(
    held_bytes: int, tile_elements: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    width = 700  # tiles of 256 ids, the smallest, and one of 188
    hidden = {"base": torch.randn(33, 16), "rl": torch.randn(33, 8)}
    heads = {"base": LmHead(torch.randn(width, 16)), "rl": LmHead(torch.randn(width + 300, 8))}
    targets = torch.randint(0, width, (33,))
    whole = score_rows(hidden, heads, targets, base="base")
    for limits in (statistics.HELD_BYTES, statistics.HELD_BYTES_COMPILED):
        monkeypatch.setitem(limits, "cpu", held_bytes)
    monkeypatch.setattr(statistics, "TILE_ELEMENTS", tile_elements)
    assert chunk_rows([width, width + 300], compiled=compiled) < 33
    cut = score_rows(hidden, heads, targets, base="base", compiled=compiled)
    for policy, values in whole.items():
        for name, value in values.items():
            # the product of fewer rows may be summed in another order: logits of 16 terms
            torch.testing.assert_close(cut[policy][name], value, atol=1e-5, rtol=1e-5)


def test_a_chunk_fits_into_its_memory() -> None:
    # two heads of 152,064 ids: 4 bytes an id and policy are 1,216,512 a row; 32 MiB hold 27,
    # 48 MiB 41, and a third policy takes the place of the second
    assert chunk_rows([152_064, 152_064]) == 27
    assert chunk_rows([152_064, 152_064], compiled=True) == 41
    assert chunk_rows([152_064, 152_064, 152_064]) == 27
    assert chunk_rows([10**9]) == 1


def test_sampled_statistics_alone_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    hidden = {"base": torch.randn(5, 16), "rl": torch.randn(5, 16)}
    heads = {"base": LmHead(torch.randn(50, 16)), "rl": LmHead(torch.randn(60, 16))}
    targets = torch.randint(0, 50, (5,))
    whole = score_rows(hidden, heads, targets, base="base")
    sampled = score_rows(hidden, heads, targets, base="base", sampled_only=True)
    for policy, values in sampled.items():
        assert values.keys() == {"logp", "outside"}
        for name, value in values.items():
            assert torch.equal(value, whole[policy][name])
