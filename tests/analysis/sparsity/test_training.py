"""Movement over checkpoints: R² against SciPy's, half ways by hand, sums in any order."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from score_tables import score_rows

from dlogp_ray.analysis.sparsity.groups import grouped
from dlogp_ray.analysis.sparsity.report.charts import charts
from dlogp_ray.analysis.sparsity.report.report import first_movers
from dlogp_ray.analysis.sparsity.tables import sparsity_tables, training_tables
from dlogp_ray.analysis.sparsity.training import R2_BINS, Training, half_way, r_squared, trainings


def test_r_squared_is_scipy_s() -> None:
    rng = np.random.default_rng(0)
    steps = np.array([0.0, 50, 100, 250])
    logp = rng.normal(size=(4, 30)) + np.outer(steps / 100, rng.normal(size=30))
    expected = [stats.linregress(steps, logp[:, i]).rvalue ** 2 for i in range(30)]
    assert r_squared(logp, steps) == pytest.approx(np.array(expected), rel=1e-9)


def test_a_straight_line_has_r_squared_1_and_what_stands_still_none() -> None:
    steps = np.array([0.0, 10, 40])
    assert r_squared(np.stack([steps * -0.1, np.ones(3)], 1), steps)[0] == pytest.approx(1.0)
    assert np.isnan(r_squared(np.ones((3, 1)), steps)).all()


def test_half_ways_by_hand() -> None:
    delta = np.array([[0.0, 0, 0], [0.3, -0.6, 2.0], [0.5, -0.4, -1.0], [1.0, -1.0, -1.0]])
    # half of 1 is reached at the third; half of −1 at the second; the last goes astray at first
    assert half_way(delta).tolist() == [2, 1, 2]


def checkpoints(samples: int, seed: int) -> pa.Table:
    """The same texts at steps 100 and 300; the base does not move."""
    early = score_rows(samples, seed=seed, policy="early")
    late = score_rows(samples, seed=seed, policy="late")
    base = np.asarray(late["logp_base"].combine_chunks().flatten())
    offsets = late["logp_base"].combine_chunks().offsets
    rng = np.random.default_rng(seed)
    for table, step in ((early, 100), (late, 300)):
        delta = (rng.normal(size=len(base)) * step / 200).astype(np.float32)
        columns = {"logp_rl": base + delta, "delta_logp": delta}
        for name, values in columns.items():
            column = pa.ListArray.from_arrays(offsets, pa.array(values))
            table = table.set_column(table.column_names.index(name), name, column)
        table = table.set_column(
            table.column_names.index("step"), "step", pa.array([step] * samples, pa.int32())
        )
        names = pa.array([f"s{seed}-{i}" for i in range(samples)])
        table = table.set_column(0, "sample_id", names)
        if step == 100:
            early = table
        else:
            late = table
    return pa.concat_tables([late, early])


def test_of_rows_by_hand() -> None:
    rows = checkpoints(60, seed=5)
    found = trainings(rows, 0.0)["base"]
    assert found.steps == (0, 100, 300)
    tokens = []
    early = {r["sample_id"]: r for r in rows.to_pylist() if r["policy"] == "early"}
    for row in rows.to_pylist():
        if row["policy"] == "late":
            other = early[row["sample_id"]]
            for i, counts in enumerate(row["response_mask"]):
                if counts:
                    tokens.append((row["logp_base"][i], other["logp_rl"][i], row["logp_rl"][i]))
    logp = np.array(tokens, dtype=np.float32).astype(np.float64)
    moved = np.abs(logp[:, 2] - logp[:, 0]) > 0.5
    r2 = np.array([stats.linregress([0, 100, 300], one).rvalue ** 2 for one in logp[moved]])
    figures = found.ratios.figures()
    share = figures["logp", "share_moved", 0.5]
    assert (share.value, share.n_tokens) == (pytest.approx(moved.mean()), len(logp))
    linear = figures["logp", "mean_r_squared_of_moved", None]
    assert linear.value == pytest.approx(r2.mean(), rel=1e-9)
    assert linear.n_tokens == moved.sum()
    assert figures["logp", "share_linear_of_moved", 0.9].value == pytest.approx((r2 >= 0.9).mean())
    assert found.r2_histogram.sum() == moved.sum()
    assert len(found.r2_histogram) == R2_BINS
    delta = logp[moved] - logp[moved][:, :1]
    early_enough = np.abs(delta[:, 1]) >= np.abs(delta[:, 2]) / 2
    early_enough &= np.sign(delta[:, 1]) == np.sign(delta[:, 2])
    by_step = figures["logp", "share_of_moved_half_way_by_step", 100.0].value
    assert by_step == pytest.approx(early_enough.mean())
    assert figures["logp", "share_of_moved_half_way_by_step", 300.0].value == 1.0
    assert found.moved.counts.sum() == moved.sum()


def test_sums_do_not_depend_on_order() -> None:
    parts = [checkpoints(20, seed=seed) for seed in range(3)]
    whole = trainings(pa.concat_tables(parts), 0.0)["base"]
    one, two, three = (trainings(part, 0.0)["base"] for part in parts)
    for total in ((one + two) + three, three + (one + two)):
        assert np.array_equal(total.r2_histogram, whole.r2_histogram)
        assert np.array_equal(total.moved.ids, whole.moved.ids)
        assert np.array_equal(total.moved.counts, whole.moved.counts)
        for key, figure in whole.ratios.figures().items():
            assert total.ratios.figures()[key].value == pytest.approx(figure.value, rel=1e-12)


def test_charts_of_training_come_with_their_tables() -> None:
    found = grouped(checkpoints(30, seed=2), [], {})
    tables = sparsity_tables(found, (), {}, lambda token: None)
    titles = {"Linear in training", "When tokens moved"}
    over = {"|Δlog p| > 0.5 over checkpoints", "JS > 0.1 over checkpoints"}
    assert {one.title for one in charts(tables)["Over training"]} == over
    drawn = charts(tables | training_tables(found, {}, lambda token: None))["Over training"]
    assert {one.title for one in drawn} == over | titles
    (half,) = (one for one in drawn if one.title == "When tokens moved")
    values = half.spec["data"]["values"]
    assert [row["step"] for row in values] == [0.0, 100.0, 300.0]
    assert [row["value"] for row in values][::2] == [0.0, 1.0]


def test_what_was_not_scored_under_each_checkpoint_is_left_out() -> None:
    rows = checkpoints(10, seed=1)
    without = rows.slice(1)  # one sample has its early checkpoint only
    found = trainings(without, 0.0)["base"]
    assert found.ratios.figures()["logp", "share_moved", 0.5].n_samples == 9
    assert trainings(rows.filter(pa.compute.equal(rows["policy"], "late")), 0.0) == {}


def test_other_checkpoints_do_not_add_up() -> None:
    one = trainings(checkpoints(5, seed=1), 0.0)["base"]
    other = Training((0, 7, 9), one.ratios, one.r2_histogram, one.moved)
    with pytest.raises(ValueError, match="expected checkpoints"):
        one + other


def test_the_first_movers_come_first() -> None:
    counts = {7: {0: 0, 100: 3, 300: 1}, 8: {0: 0, 100: 0, 300: 2}, 9: {0: 0, 100: 5, 300: 0}}
    rows = [
        {"generator": "base", "token_id": token, "token": None, "step": step, "tokens": count}
        for token, steps in counts.items()
        for step, count in steps.items()
    ]
    _, *lines = first_movers(pa.Table.from_pylist(rows))
    # (3·100 + 1·300) / 4 = 150
    assert [line[2:] for line in lines] == [["9", "5", "100"], ["7", "4", "150"], ["8", "2", "300"]]
