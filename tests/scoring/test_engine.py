"""The choice of the engine: what is worth compiling, and in which dtype."""

import pytest
import torch

from dlogp_ray.scoring import engine
from dlogp_ray.scoring.engine import compiling_pays, fast_dtype


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
    monkeypatch.setattr(engine, "_product_s", lambda dtype, device: seconds[dtype])
    assert fast_dtype("bfloat16", "cpu") == chosen


def test_float32_is_never_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_product_s", lambda dtype, device: float(dtype == "float32"))
    assert fast_dtype("float32", "cpu") == "float32"


def test_the_measurement_is_of_this_machine() -> None:
    # an 8 times larger product takes longer, whatever the machine
    small = engine.median_s(lambda: torch.ones(64, 64) @ torch.ones(64, 64), "cpu")
    large = engine.median_s(lambda: torch.ones(1024, 1024) @ torch.ones(1024, 1024), "cpu")
    assert 0 < small < large
