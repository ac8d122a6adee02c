"""Statistics against plain NumPy over the whole table; sums in any order; errors that cover."""

import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from score_tables import score_rows

from dlogp_ray.analysis.estimates import t975
from dlogp_ray.analysis.sparsity.bins import COUNT, EDGES, bin_of, gini
from dlogp_ray.analysis.sparsity.folds import FOLDS
from dlogp_ray.analysis.sparsity.groups import MOST_GROUPS, Group, Grouped, grouped
from dlogp_ray.analysis.sparsity.ratios import Part, Ratios
from dlogp_ray.analysis.sparsity.statistics import (
    ENTROPY_EDGES,
    HISTOGRAMS,
    POSITION_EDGES,
    QUANTILES,
    Statistics,
    measured,
    parts,
)
from dlogp_ray.analysis.sparsity.tokens import Tokens
from dlogp_ray.errors import Refused

FLOOR = 0.02
FLOORS = {"delta_logp": FLOOR, "js": 1e-3}
SAMPLES = 700


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return score_rows(SAMPLES)


@pytest.fixture(scope="module")
def statistics(rows: pa.Table) -> Statistics:
    return Statistics.of(Tokens.of(rows), FLOORS)


@pytest.fixture(scope="module")
def flat(rows: pa.Table) -> dict[str, np.ndarray]:
    """One row a token that counts, by way of Python lists."""
    found: dict[str, list[Any]] = {name: [] for name in (*rows.column_names, "position", "whole")}
    for row in rows.to_pylist():
        for position, counts in enumerate(row["response_mask"]):
            if counts:
                for name, value in row.items():
                    found[name].append(value[position] if isinstance(value, list) else value)
                found["position"].append(position)
                found["whole"].append(len(row["response_mask"]))
    arrays = {name: np.array(values) for name, values in found.items()}
    return {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in arrays.items()}


def test_counts_are_exact_and_means_agree(
    statistics: Statistics, flat: dict[str, np.ndarray]
) -> None:
    figures = statistics.figures()
    delta, js, n = flat["delta_logp"], flat["js"], len(flat["js"])
    assert statistics.tokens == n
    assert statistics.samples == len(set(flat["sample_id"]))

    def count(*key: Any) -> float:
        figure = figures[key]
        assert figure.n_tokens == n
        return figure.value * n

    # A count over n, times n: exact but for one rounding.
    assert count("delta_logp", "share_raised", None) == pytest.approx((delta > FLOOR).sum(), 1e-15)
    lowered = (delta < -FLOOR).sum()
    assert count("delta_logp", "share_lowered", None) == pytest.approx(lowered, 1e-15)
    unresolved = (np.abs(delta) <= FLOOR).sum()
    assert count("delta_logp", "share_unresolved", None) == pytest.approx(unresolved, 1e-15)
    unresolved = (js <= 1e-3).sum()
    assert count("js", "share_unresolved", None) == pytest.approx(unresolved, 1e-15)
    for threshold in (0.01, 0.3, 4.0):
        above = (np.abs(delta) > threshold).sum()
        assert count("abs_delta_logp", "share_above", threshold) == pytest.approx(above, 1e-15)
    for threshold in (1e-4, 0.1):
        above = (js > threshold).sum()
        assert count("js", "share_above", threshold) == pytest.approx(above, 1e-15)
    p_base, p_rl = np.exp(flat["logp_base"]), np.exp(flat["logp_rl"])
    for key, values in {
        "delta_logp": delta,
        "abs_delta_logp": np.abs(delta),
        "kl_rl_base": flat["kl_rl_base"],
        "entropy_rl": flat["entropy_rl"],
        "top1_agree": flat["top1_agree"],
        "delta_p": p_rl - p_base,
        "delta_p_squared": (p_rl - p_base) ** 2,
    }.items():
        assert figures[key, "mean", None].value == pytest.approx(values.mean(), rel=1e-12)


def test_curves_over_places_and_entropy(
    statistics: Statistics, flat: dict[str, np.ndarray]
) -> None:
    figures = statistics.figures()
    delta = flat["delta_logp"]
    relative = flat["position"] / flat["whole"]
    for place in range(20):
        there = np.floor(relative * 20) == place
        figure = figures["delta_logp", "mean_at_relative_position", place / 20]
        assert figure.n_tokens == there.sum()
        assert figure.value == pytest.approx(delta[there].mean(), rel=1e-12)
        assert figure.n_samples == len(set(flat["sample_id"][there]))
    for start, end in pairwise([*POSITION_EDGES[:8].tolist()]):
        there = (flat["position"] >= start) & (flat["position"] < end)
        figure = figures["js", "mean_at_position", float(start)]
        assert figure.value == pytest.approx(flat["js"][there].mean(), rel=1e-12)
    for start, end in pairwise([*ENTROPY_EDGES.tolist(), np.inf]):
        there = (flat["entropy_base"] >= start) & (flat["entropy_base"] < end)
        figure = figures["kl_rl_base", "mean_at_entropy_base", start]
        assert figure.value == pytest.approx(flat["kl_rl_base"][there].mean(), rel=1e-12)


def test_first_choices_where_the_policies_differ(
    statistics: Statistics, flat: dict[str, np.ndarray]
) -> None:
    figures = statistics.figures()
    high = flat["js"] > 0.1
    for k in (1, 3, 10):
        figure = figures["rank_base_of_rl_top1", "share_in_top", float(k)]
        assert figure.n_tokens == high.sum()
        inside = (flat["rank_base_of_rl_top1"][high] < k).mean()
        assert figure.value == pytest.approx(inside, rel=1e-12)
    below = (np.exp(flat["logp_base_of_rl_top1"][high]) < 0.01).mean()
    key = ("logp_base_of_rl_top1", "share_of_p_below", 0.01)
    assert figures[key].value == pytest.approx(below, rel=1e-12)


def test_histograms_and_shifted_tokens(statistics: Statistics, flat: dict[str, np.ndarray]) -> None:
    for name, edges in HISTOGRAMS.items():
        inside = np.clip(flat[name], edges[0], np.nextafter(edges[-1], 0))
        counts, _ = np.histogram(inside, edges)
        # NumPy's edges of equal bins and of others, and ours, are compared as the same float64.
        assert np.array_equal(statistics.histograms[name], counts)
    shifted, delta = statistics.shifted, flat["delta_logp"]
    assert shifted.counts.sum() == len(delta)
    for index in shifted.most(5):
        mine = flat["response_ids"] == shifted.ids[index]
        assert shifted.counts[index] == mine.sum()
        assert shifted.raised[index] == pytest.approx(delta[mine & (delta > 0)].sum(), rel=1e-12)
        assert shifted.lowered[index] == pytest.approx(delta[mine & (delta < 0)].sum(), rel=1e-12)
    most = shifted.most(len(shifted.ids))
    size = np.maximum(shifted.raised, -shifted.lowered)[most]
    assert (np.diff(size) <= 0).all()


def test_quantiles_are_right_to_a_share_of_their_value(
    statistics: Statistics, flat: dict[str, np.ndarray]
) -> None:
    figures = statistics.figures()
    for name in ("delta_logp", "js", "entropy_base"):
        values = np.sort(flat[name])
        for share, extreme in ((0.0, values[0]), (1.0, values[-1])):
            found = figures[name, "quantile", share]
            assert (found.value, found.se, found.ci_low) == (extreme, None, None)
        for share in QUANTILES[1:-1]:
            found = figures[name, "quantile", share]
            assert found.se == (found.ci_high - found.ci_low) / (2 * t975(FOLDS - 1))
            assert found.ci_low <= found.value <= found.ci_high
            exact = np.quantile(values, share, method="inverted_cdf")
            assert found.value == pytest.approx(exact, rel=2**-8, abs=0)


def test_concentration_and_deciles(statistics: Statistics, flat: dict[str, np.ndarray]) -> None:
    figures = statistics.figures()
    size = np.sort(np.abs(flat["delta_logp"]))[::-1]
    n = len(size)
    for share in (0.01, 0.05, 0.1, 0.2):
        whole, part = divmod(share * n, 1)
        exact = (size[: int(whole)].sum() + part * size[int(whole)]) / size.sum()
        # Tokens of a bin count as equal, and differ by less than 1 %: their share moves less.
        key = ("abs_delta_logp", "share_of_sum_in_top", share)
        assert figures[key].value == pytest.approx(exact, rel=0.002)
    ascending = size[::-1]
    exact = 2 * (np.arange(1, n + 1) @ ascending) / (n * ascending.sum()) - (n + 1) / n
    assert figures["abs_delta_logp", "gini", None].value == pytest.approx(exact, abs=1e-3)
    order = np.argsort(flat["logp_base"])
    weight = 1 - np.exp(flat["logp_base"][order])
    for decile in range(1, 10):
        places = np.arange(n)
        part = np.clip(
            np.minimum(places + 1, decile * n / 10) - np.maximum(places, (decile - 1) * n / 10),
            0,
            1,
        )
        share = (part @ weight) / weight.sum()
        key = ("logp_base", "gradient_share_of_decile", float(decile))
        assert figures[key].value == pytest.approx(share, rel=0.02, abs=1e-6)
    total = sum(
        figures["logp_rl", "delta_logp_of_decile", float(decile)].value for decile in range(1, 11)
    )
    assert total / 10 == pytest.approx(flat["delta_logp"].mean(), rel=1e-9)


def test_the_gini_coefficient_by_hand() -> None:
    # 1, 1, 2 and 4: mean absolute difference over twice the mean, Σ|x_i − x_j| / (2 n² x̄):
    # ordered pairs 2·(0 + 1 + 3 + 1 + 3 + 2) = 20; 20 / (2·16·2) = 0.3125
    assert gini(np.array([2, 1, 1]), np.array([2.0, 2.0, 4.0])) == pytest.approx(0.3125)


def test_bins_hold_what_their_edges_say() -> None:
    values = np.random.default_rng(0).lognormal(-3, 4, 100_000)
    found = bin_of(values)
    exact = np.searchsorted(EDGES, values, side="right")
    # The logarithm's roundings may move what lies on an edge.
    on_edge = np.abs(values / EDGES[np.clip(found, 0, COUNT - 2)] - 1) < 1e-12
    assert np.array_equal(found[~on_edge], exact[~on_edge])
    assert bin_of(np.array([-1e-9, 0.0, 1e9])).tolist() == [0, 0, COUNT - 1]


def test_sums_do_not_depend_on_order(rows: pa.Table, statistics: Statistics) -> None:
    ends = [0, 3, 200, 201, 450, SAMPLES]
    some = [Statistics.of(Tokens.of(rows[a:b]), FLOORS) for a, b in pairwise(ends)]
    some = [pickle.loads(pickle.dumps(one)) for one in some]
    left = ((some[0] + some[1]) + some[2]) + (some[3] + some[4])
    right = some[4] + (some[2] + (some[3] + (some[1] + some[0])))
    for one in (left, right):
        assert (one.samples, one.tokens) == (statistics.samples, statistics.tokens)
        for name, counts in statistics.histograms.items():
            assert np.array_equal(one.histograms[name], counts)
        for name, counts in statistics.joint.items():
            assert np.array_equal(one.joint[name], counts)
        assert np.array_equal(one.magnitude.counts, statistics.magnitude.counts)
        assert np.array_equal(one.shifted.counts, statistics.shifted.counts)
        assert np.array_equal(one.shifted.ids, statistics.shifted.ids)
        mine, whole = one.figures(), statistics.figures()
        assert mine.keys() == whole.keys()
        for key, figure in whole.items():
            assert (mine[key].n_tokens, mine[key].n_samples) == (figure.n_tokens, figure.n_samples)
            if "quantile" in key[1]:
                assert mine[key] == figure
            if figure.value is None:
                assert mine[key].value is None
                continue
            assert mine[key].value == pytest.approx(figure.value, rel=1e-9, abs=1e-15)
            if "share_above" in key[1] or "share_in_top" in key[1]:
                assert mine[key].value == figure.value


def test_errors_of_ratios_by_hand() -> None:
    # Samples with 1 of 2, 3 of 4 and 0 of 2 tokens: R = 4/8. Residuals y − R·n: 0, 1, −1;
    # se² = 3/2 · 2 / 8² = 3/64
    part = Part(("x", "share", None), np.array([1.0, 3.0, 0.0]), np.array([2.0, 4.0, 2.0]))
    figure = Ratios.of([part]).figures()["x", "share", None]
    assert (figure.value, figure.n_tokens, figure.n_samples) == (0.5, 8, 3)
    assert figure.se == pytest.approx(np.sqrt(3 / 64))
    one = Ratios.of([Part(("x", "share", None), np.array([1.0]), np.array([2.0]))])
    assert one.figures()["x", "share", None].se is None
    none = Ratios.of([Part(("x", "share", None), np.array([0.0]), np.array([0.0]))])
    assert none.figures()["x", "share", None].value is None


def test_what_is_not_computed_gives_no_figure(rows: pa.Table) -> None:
    missing = ["kl_rl_base", "kl_base_rl", "js", "top1_agree", "logp_base_of_rl_top1"]
    missing += ["rank_base_of_rl_top1", "entropy_rl"]
    nothing = pa.nulls(len(rows), pa.list_(pa.float32()))
    for name in missing:
        rows = rows.set_column(rows.column_names.index(name), name, nothing)
    found = Statistics.of(Tokens.of(rows), FLOORS)
    names = {key[0] for key in found.figures()}
    assert not names & set(missing)
    assert {"delta_logp", "abs_delta_logp", "entropy_base", "delta_p"} <= names
    assert set(found.histograms) == {"delta_logp", "entropy_base"}


def test_groups(rows: pa.Table) -> None:
    correct = [i % 3 == 0 for i in range(SAMPLES)]
    rejected = score_rows(5, seed=9).set_column(1, "status", [["not_finite"] * 5])
    alone = score_rows(4, seed=8, policy="base")
    nothing = pa.nulls(4, pa.list_(pa.float32()))
    at = alone.column_names.index("delta_logp")
    alone = alone.set_column(at, "delta_logp", nothing)
    tables = [
        rows.append_column("correct", [correct]),
        score_rows(30, seed=3, generator=None).append_column("correct", [[None] * 30]),
        rejected.append_column("correct", [[True] * 5]),
        alone.append_column("correct", [[True] * 4]),
    ]
    whole = pa.concat_tables(tables, promote_options="permissive")
    found = Grouped.merge(
        [grouped(whole[a:b], ["correct"], FLOORS) for a, b in ((0, 99), (99, 999))]
    )
    assert (found.rows, found.alone) == (SAMPLES + 30 + 5 + 4, 4)
    true, false = (("correct", "true"),), (("correct", "false"),)
    assert set(found.groups) == {
        Group("rl", "base", true),
        Group("rl", "base", false),
        Group("rl", None, (("correct", None),)),
    }
    mask = [np.any(m) for m in rows["response_mask"].to_pylist()]
    expected = sum(m for m, c in zip(mask, correct, strict=True) if c)
    assert found.groups[Group("rl", "base", true)].samples == expected


def test_any_value_is_a_group_of_its_own() -> None:
    values = [0.5, float("nan"), None, 1.0]
    rows = score_rows(40).append_column("reward", pa.array(values * 10, pa.float32()))
    groups = grouped(rows, ["reward"], {}).groups
    names = {dict(group.by)["reward"]: one.samples for group, one in groups.items()}
    assert set(names) == {"0.5", "nan", None, "1"}
    assert sum(names.values()) == Statistics.of(Tokens.of(rows), {}).samples


def test_a_group_without_tokens_is_named() -> None:
    rows = score_rows(8).append_column("source", [["a", "b", "c", "a"] * 2])
    masks = [[s != "b"] * len(m) for s, m in zip(*columns(rows, "source", "js"), strict=True)]
    rows = rows.set_column(rows.column_names.index("response_mask"), "response_mask", [masks])
    states = ["rejected" if s == "c" else "ok" for s in rows["source"].to_pylist()]
    rows = rows.set_column(rows.column_names.index("status"), "status", [states])
    found = grouped(rows[:4], ["source"], {}) + grouped(rows[4:], ["source"], {})
    assert [str(group) for group in found.groups] == ["base's text under rl, source a"]
    assert [str(group) for group in found.empty] == [
        "base's text under rl, source b",
        "base's text under rl, source c",
    ]


def columns(rows: pa.Table, *names: str) -> list[list[Any]]:
    return [rows[name].to_pylist() for name in names]


def test_too_many_groups_are_refused_wherever_they_meet() -> None:
    ids = [str(i) for i in range(MOST_GROUPS + 1)]
    rows = score_rows(len(ids), masked=0.0).append_column("id", pa.array(ids))
    with pytest.raises(Refused, match=f"at most {MOST_GROUPS} groups"):
        grouped(rows, ["id"], {})
    first, rest = grouped(rows[:5], ["id"], {}), grouped(rows[5:], ["id"], {})
    with pytest.raises(Refused, match=f"at most {MOST_GROUPS} groups"):
        first + rest
    assert len((first + grouped(rows[5:-1], ["id"], {})).groups) == MOST_GROUPS


SAMPLES_A_ROUND = 400


def made_up(seed: int, samples: int = SAMPLES_A_ROUND) -> Tokens:
    return Tokens.of(score_rows(samples, seed=seed, length=25, masked=0.0))


@pytest.mark.slow
def test_clustered_intervals_cover_and_others_do_not() -> None:
    """2,000 tables of 400 samples whose tokens are correlated; the truth is of 40,000 samples."""
    keys = [("abs_delta_logp", "share_above", 0.3), ("entropy_base", "mean", None)]
    keys += [("entropy_base", "mean_at_relative_position", 0.5)]
    many = made_up(0, 40_000)
    truth = Ratios.of(parts(many, measured(many), FLOORS)).figures()
    covered, plain = dict.fromkeys(keys, 0), 0
    rounds = 2_000
    for seed in range(1, rounds + 1):
        tokens = made_up(seed)
        values = measured(tokens)
        wanted = [part for part in parts(tokens, values, FLOORS) if part.key in keys]
        found = Ratios.of(wanted).figures()
        for key in keys:
            covered[key] += found[key].ci_low <= truth[key].value <= found[key].ci_high
        entropy = values["entropy_base"]
        half = 1.96 * entropy.std(ddof=1) / np.sqrt(len(entropy))
        plain += abs(entropy.mean() - truth["entropy_base", "mean", None].value) <= half
    # 95 % ± 2 points, four times the simulation's own error of 0.49 points.
    for key in keys:
        assert 0.93 <= covered[key] / rounds <= 0.97, key
    assert plain / rounds < 0.8


@pytest.mark.slow
def test_intervals_of_quantiles_and_concentration_cover() -> None:
    keys = [("entropy_base", "quantile", 0.5), ("delta_logp", "quantile", 0.9)]
    keys += [("abs_delta_logp", "gini", None), ("logp_base", "gradient_share_of_decile", 2.0)]
    truth = Statistics.of(made_up(0, 40_000), FLOORS).figures()
    covered, rounds = dict.fromkeys(keys, 0), 1_000
    for seed in range(1, rounds + 1):
        found = Statistics.of(made_up(seed), FLOORS).figures()
        for key in keys:
            covered[key] += found[key].ci_low <= truth[key].value <= found[key].ci_high
    # The simulation's own error is 0.69 points; a quantile's interval has its bins too.
    for key in keys:
        assert 0.93 <= covered[key] / rounds <= (0.98 if key[1] == "quantile" else 0.97), key
