"""The C++ kernels against float64, with the error that their arithmetic allows and no more."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dlogp_ray.policies import linear as linear_module
from dlogp_ray.policies.kernels import bfloat16_kernels
from dlogp_ray.policies.linear import KernelLinear, use_kernel

# Sizes that fill no block of 64 columns, 16 lanes or 6 rows, and such that do.
SIZES = [(1, 2, 1), (5, 30, 16), (6, 64, 64), (7, 34, 65), (13, 576, 192), (100, 898, 100)]


@pytest.fixture(scope="module")
def kernels() -> Any:
    found = bfloat16_kernels()
    if found is None:
        pytest.skip("no C++ compiler, or a processor that they are not for")
    return found


def factors(n: int, h: int, v: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(n + h + v)
    return torch.randn(n, h).bfloat16(), torch.randn(v, h).bfloat16()


@pytest.mark.parametrize(("n", "h", "v"), SIZES)
def test_a_product_is_exact_but_for_the_rounding_of_its_sums(
    kernels: Any, n: int, h: int, v: int
) -> None:
    hidden, weight = factors(n, h, v)
    area = torch.full((n, v + 3), 7.0)
    kernels.product(hidden, weight, area[:, :v])
    exact = hidden.double() @ weight.double().T
    # Products of bfloat16 are exact in float32; h additions err by 2**-24 of Σ|a b| each at most.
    bound = h * 2**-24 * (hidden.double().abs() @ weight.double().abs().T)
    assert ((area[:, :v] - exact).abs() <= bound).all()
    assert (area[:, v:] == 7).all()  # and writes nowhere else


@pytest.mark.parametrize(("n", "h", "v"), SIZES)
def test_a_linear_layer_is_that_product_rounded_once(kernels: Any, n: int, h: int, v: int) -> None:
    hidden, weight = factors(n, h, v)
    logits = torch.empty(n, v)
    kernels.product(hidden, weight, logits)
    assert torch.equal(kernels.linear(hidden, weight), logits.bfloat16())


def test_rows_of_another_layout_give_the_same(kernels: Any) -> None:
    hidden, weight = factors(10, 8, 5)
    strided = hidden.T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(kernels.linear(strided, weight), kernels.linear(hidden, weight))


def test_the_number_of_threads_changes_no_bit(kernels: Any) -> None:
    hidden, weight = factors(40, 128, 1_000)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(kernels.linear(hidden, weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("rejected", ["float32", "odd", "shape"])
def test_factors_that_do_not_fit_are_refused(kernels: Any, rejected: str) -> None:
    hidden, weight = factors(4, 6, 8)
    if rejected == "float32":
        weight = weight.float()
    elif rejected == "odd":
        hidden, weight = hidden[:, :5].contiguous(), weight[:, :5].contiguous()
    else:
        weight = weight[:, :4].contiguous()
    with pytest.raises(RuntimeError, match="expected"):
        kernels.linear(hidden, weight)


@pytest.mark.parametrize(
    ("heads", "groups", "queries", "keys", "d", "e"),
    [
        (4, 2, 7, 7, 6, 10),
        (9, 3, 64, 64, 64, 64),
        (2, 1, 100, 131, 128, 72),
        (3, 3, 1, 50, 64, 65),
        (9, 3, 243, 307, 64, 64),
    ],
)
def test_attention_errs_by_its_two_roundings_to_bfloat16(
    kernels: Any, heads: int, groups: int, queries: int, keys: int, d: int, e: int
) -> None:
    torch.manual_seed(keys)
    query, key, value = (
        torch.randn(length, n, size).bfloat16().transpose(0, 1)
        for length, n, size in ((queries, heads, d), (keys, groups, d), (keys, groups, e))
    )
    out = torch.empty(queries, heads, e, dtype=torch.bfloat16).transpose(0, 1)
    kernels.attend(query, key, value, out, d**-0.5)
    every = heads // groups
    q, k, v = query.double(), *(x.double().repeat_interleave(every, 0) for x in (key, value))
    seen = torch.arange(keys) <= torch.arange(queries)[:, None] + keys - queries
    scores = (q @ k.transpose(1, 2) * d**-0.5).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1)
    # Weights and result have 8 significant bits: rounding errs by 2**-8 of each at most. The
    # exponential is good to 20 bits and the scores to more: a hundredth of that.
    bound = 1.01 * 2 * 2**-8 * (weights @ v.abs())
    assert ((out.double() - weights @ v).abs() <= bound).all()


def test_only_layers_that_the_kernel_can_do_go_through_it(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "MOST_INPUTS", 64)
    fitting = {"plain": torch.nn.Linear(64, 5, bias=False, dtype=torch.bfloat16)}
    others = {
        "bias": torch.nn.Linear(64, 5, dtype=torch.bfloat16),
        "float32": torch.nn.Linear(64, 5, bias=False),
        "odd": torch.nn.Linear(63, 5, bias=False, dtype=torch.bfloat16),
        "wide": torch.nn.Linear(66, 5, bias=False, dtype=torch.bfloat16),
        "norm": torch.nn.LayerNorm(64, dtype=torch.bfloat16),
    }
    module = torch.nn.ModuleDict(fitting | others)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    use_kernel(module)
    assert {name for name in module if isinstance(module[name], KernelLinear)} == set(fitting)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    # Of any number of leading dimensions: the layer's own result, but for one rounding each.
    x = torch.randn(2, 3, 64).bfloat16()
    exact = x.double() @ module["plain"].weight.double().T
    found = module["plain"](x)
    assert found.shape == (2, 3, 5)
    assert torch.allclose(found.double(), exact, rtol=2**-8, atol=1e-5)
