"""Watching a run: speeds and times worked out by hand, on a clock of the test's own."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest
from run_records import score_info

from dlogp_ray import store
from dlogp_ray.analysis.watching import Progress, watch
from dlogp_ray.corpus.units import SCHEMA, Units, encode_units
from dlogp_ray.errors import Damaged
from dlogp_ray.tables.object_names import unit_name
from dlogp_ray.tables.run import Run, begin_run

TOKENS = [100, 200, 300, 400]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Four units of 100, 200, 300 and 400 tokens, none done."""
    n = len(TOKENS)
    columns = [
        list(range(n)),
        ["c"] * n,
        ["jsonl"] * n,
        [None] * n,
        [0] * n,
        [1] * n,
        TOKENS,
        TOKENS,
        [1] * n,
        ["1"] * n,
        [0] * n,
    ]
    units = encode_units(Units(pa.table(columns, schema=SCHEMA)))
    sha256 = hashlib.sha256(units).hexdigest()
    info = score_info(n, {"units": {"count": n, "sha256": sha256}})
    return begin_run(str(tmp_path / "run"), info, {"units.parquet": units})


def put(run: Run, *units: int) -> None:
    for unit in units:
        store.create(run.object_uri(unit_name(unit)), b"an object")


def test_speed_and_time_left_until_it_is_sealed(run: Run) -> None:
    put(run, 0)
    now = 0.0
    steps = iter([lambda: put(run, 1), lambda: put(run, 3), lambda: put(run, 2)])

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        next(steps)()
        if now == 30:
            store.create(run.path("_SUCCESS"), b"{}")

    seen = list(watch(run, 10, clock=lambda: now, sleep=sleep))
    assert [p.units_done for p in seen] == [1, 2, 3, 4]
    assert [p.tokens_done for p in seen] == [100, 300, 700, 1000]
    # Since the first look: 200 tokens in 10 s, 600 in 20 s, 900 in 30 s.
    assert [p.tokens_per_s for p in seen] == [None, 20, 30, 30]
    assert [p.seconds_left for p in seen] == [None, 35, 10, 0]  # 700 / 20, 300 / 30
    assert [p.sealed for p in seen] == [False, False, False, True]


def test_failed_units_are_counted_and_a_standstill_has_no_speed(run: Run) -> None:
    put(run, 0, 1)
    store.replace(run.path("failed/part-00000003.json"), b"{}")
    looks = watch(run, 1, clock=iter([0.0, 1.0]).__next__, sleep=lambda _: None)
    first, second = next(looks), next(looks)
    assert (first.units_failed, first.tokens_per_s) == (1, None)
    assert (second.units_failed, second.tokens_per_s, second.seconds_left) == (1, None, None)
    assert str(second) == "2 of 4 units (30.0% of the tokens), 1 failed"


@pytest.mark.parametrize(
    ("seconds", "text"), [(59, "0 h 01 min"), (3_540, "0 h 59 min"), (90_000, "25 h 00 min")]
)
def test_time_left_for_people(seconds: float, text: str) -> None:
    progress = Progress(4, 1, 0, 1_000, 250, 1_234.5, seconds, sealed=False)
    assert str(progress) == f"1 of 4 units (25.0% of the tokens), 1,234 tokens/s, {text} left"


def test_a_list_of_units_that_is_cut_is_damage(run: Run) -> None:
    units = Path(run.path("units.parquet"))
    units.write_bytes(units.read_bytes()[:-1])
    with pytest.raises(Damaged, match=r"units\.parquet has SHA-256"):
        next(watch(run, 10))
