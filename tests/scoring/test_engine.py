"""The choice of the engine: what is worth compiling, in which dtype, with how many threads."""

import pytest
import torch

from dlogp_ray.scoring import products
from dlogp_ray.scoring.engine import ACTOR_BYTES, compiling_pays, thread_choices
from dlogp_ray.scoring.products import fast_dtype


@pytest.mark.parametrize(
    ("tokens", "pays"),
    [
        # 100 tokens/s eager against 200 compiled: 6,000 tokens take 60 s or 30 s and 30 s more
        (5_999, False),
        (6_001, True),
    ],
)
def test_compiling_pays_from_where_its_time_is_won_back(tokens: int, pays: bool) -> None:
    assert compiling_pays(tokens, 100.0, 200.0, 30.0) is pays


def test_compiling_never_pays_where_it_is_not_faster() -> None:
    assert not compiling_pays(10**12, 100.0, 100.0, 0.1)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"bfloat16": 1.0, "float32": 2.0}, "bfloat16"),
        ({"bfloat16": 3.0, "float32": 2.0}, "float32"),
    ],
)
def test_half_precision_is_kept_where_it_is_fast(
    seconds: dict[str, float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_product_s", lambda dtype, device: seconds[dtype])
    assert fast_dtype("bfloat16", "cpu") == chosen


def test_float32_is_never_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_product_s", lambda dtype, device: float(dtype == "float32"))
    assert fast_dtype("float32", "cpu") == "float32"


@pytest.mark.parametrize(
    ("cpus", "actors_in_memory", "choices"),
    [
        (2, 2.0, [1, 2]),
        (2, 1.9, [2]),  # two actors do not fit
        (16, 5.5, [3, 16]),  # 16 // 2 = 8 actors do not fit, 16 // 3 = 5 do
        (16, 0.5, [16]),  # not even one fits: said when it is loaded
        (1, 9.0, [1]),
    ],
)
def test_threads_are_as_few_as_memory_allows_or_all(
    cpus: int, actors_in_memory: float, choices: list[int]
) -> None:
    policies = 3 * 10**9
    memory = actors_in_memory * (policies + ACTOR_BYTES)
    assert thread_choices(cpus, memory, policies) == choices


def test_the_measurement_is_of_this_machine() -> None:
    # an 8 times larger product takes longer, whatever the machine
    small = products.median_s(lambda: torch.ones(64, 64) @ torch.ones(64, 64), "cpu")
    large = products.median_s(lambda: torch.ones(1024, 1024) @ torch.ones(1024, 1024), "cpu")
    assert 0 < small < large
