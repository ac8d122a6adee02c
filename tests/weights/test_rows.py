"""Rows of a scores object become rows of weights: the schemes', text by text."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter
from score_tables import score_rows

from dlogp_ray.config import Scheme
from dlogp_ray.errors import Refused
from dlogp_ray.tables.token_hash import token_hash
from dlogp_ray.tables.weights import WEIGHTS_SCHEMA, WeightsSummary
from dlogp_ray.weights import rows as module
from dlogp_ray.weights.rows import Rows, Weighing, WholeTable, first_pass, weigh_rows

SAMPLES = 30
NOTHING = WholeTable()


def scores(**more: Any) -> pa.Table:
    """Score rows with what identifies them."""
    table = score_rows(SAMPLES, seed=3, length=12)
    ids, texts = table["response_ids"].to_pylist(), len(table)
    columns = {
        "group_id": [f"g{index // 3}" for index in range(texts)],
        "error": pa.nulls(texts, pa.string()),
        "token_hash": [token_hash(one) for one in ids],
        "prompt_hash": [token_hash([index]) for index in range(texts)],
        "reward": pa.array([index % 2 for index in range(texts)], pa.float32()),
        "temperature": pa.nulls(texts, pa.float32()),
    }
    for name, values in (columns | more).items():
        table = table.append_column(name, pa.array(values))
    return table


def weighing(*schemes: Any, **more: Any) -> Weighing:
    chosen = tuple(TypeAdapter(Scheme).validate_python(one) for one in schemes)
    return Weighing(chosen, **({"policy": "base", "rl": "rl"} | more))


def weighed(
    table: pa.Table, how: Weighing, whole: WholeTable = NOTHING
) -> tuple[list[dict[str, Any]], WeightsSummary]:
    found, summary = weigh_rows(Rows.of(table, how), how, whole)
    assert found.schema.equals(WEIGHTS_SCHEMA)
    return found.to_pylist(), summary


def whole_of(table: pa.Table, how: Weighing) -> WholeTable:
    _, log_ppl, reward = first_pass(Rows.of(table, how), how)
    return WholeTable(threshold=0.3, log_ppl=log_ppl, reward=reward)


def expected(row: dict[str, Any], how: Any, table: list[dict[str, Any]]) -> list[float]:
    """One text's weights, token by token in float64, from the formulas."""
    n, mask = len(row["response_ids"]), row["response_mask"]
    logp, entropy = row["logp_base"], row["entropy_base"]
    shift = [b - a for a, b in zip(logp, row["logp_rl"], strict=True)]
    some = [t for t in range(n) if mask[t]]

    def log_ppl(one: dict[str, Any]) -> float:
        taken = [-v for v, m in zip(one["logp_base"], one["response_mask"], strict=True) if m]
        return sum(taken) / len(taken)

    group = [one for one in table if one["group_id"] == row["group_id"]]
    match how["scheme"]:
        case "low_prob":
            found = [1 + 0.2 * (1 - math.exp(v)) for v in logp]
        case "dominate":
            found = [0.1 * math.exp(v) + 0.9 for v in logp]
        case "ppl":
            values = [log_ppl(one) for one in group if any(one["response_mask"])]
            if not some:
                return [1.0] * n
            score = (log_ppl(row) - np.mean(values)) / np.std(values, ddof=1)
            found = [min(1.05, max(0.9, 1 - 0.1 * score))] * n
        case "entropy_top":
            found = [float(h >= 0.3) for h in entropy]
        case "divergence":
            kl = [math.exp(d) - 1 - d for d in shift]
            found = [1 + 0.5 * (1 / (1 + math.exp(-2 * k)) - 0.5) for k in kl]
        case "delta":
            found = [min(2.0, max(0.5, math.exp(d))) for d in row["delta_logp"]]
            mean = sum(found[t] for t in some) / len(some) if some else 1.0
            found = [v / mean for v in found]
        case "rsi_band":
            ratios = [-v / h if h > 0 else 1.0 for v, h in zip(logp, entropy, strict=True)]
            found = [float(0.5 <= ratio <= 2) for ratio in ratios]
        case "future_kl":
            negative = row["reward"] < np.mean([one["reward"] for one in group])
            out = [negative and d > math.log(3) for d in shift]
            taken = [t for t in some if not out[t]]
            sums = [sum(2 ** (-(k - t) / 4) * shift[k] for k in taken if k >= t) for t in range(n)]
            found = [
                1.0 if out[t] else min(1.2, max(0.8, math.exp(min(v, 50))))
                for t, v in enumerate(sums)
            ]
    return [v if mask[t] else 1.0 for t, v in enumerate(found)]


ALL = [
    {"scheme": "low_prob", "alpha": 0.2},
    {"scheme": "dominate", "alpha": 0.1},
    {"scheme": "ppl", "alpha": 0.1, "low": 0.9, "high": 1.05},
    {"scheme": "entropy_top", "rho": 0.2},
    {"scheme": "divergence", "scale": 0.5, "alpha": 2.0},
    {"scheme": "delta", "beta": 1.0},
    {"scheme": "rsi_band", "low": 0.5, "high": 2.0},
    {"scheme": "future_kl", "half_life": 4.0, "low": 0.8, "high": 1.2, "max_ratio": 3.0},
]


@pytest.mark.parametrize("block", [2**17, 40, 1], ids=["one block", "blocks", "text by text"])
@pytest.mark.parametrize("scheme", ALL, ids=[one["scheme"] for one in ALL])
def test_weights_are_those_of_the_formula(
    scheme: dict[str, Any], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_TOKENS", block)
    table, how = scores(), weighing(scheme)
    found, summary = weighed(table, how, whole_of(table, how))
    given = table.to_pylist()
    for row, source in zip(found, given, strict=True):
        assert row["response_ids"] == source["response_ids"]
        # float32, with sums of log-ratios up to some 10 nats in an exponent.
        np.testing.assert_allclose(
            row["loss_weights"], expected(source, scheme, given), rtol=2e-5, atol=2e-6
        )
    counted = [
        weight
        for row, source in zip(found, given, strict=True)
        for weight, m in zip(row["loss_weights"], source["response_mask"], strict=True)
        if m
    ]
    assert (summary.rows, summary.tokens, summary.rejected) == (SAMPLES, len(counted), 0)
    assert summary.changed == sum(weight != 1 for weight in counted)
    assert summary.mean == pytest.approx(np.mean(counted), rel=1e-6)
    assert (summary.least, summary.greatest) == (min(counted), max(counted))


def test_texts_that_were_sampled_at_another_temperature_are_counted() -> None:
    table = scores()
    said = [0.9, 0.5, None, *[0.9] * (SAMPLES - 3)]
    place = table.schema.get_field_index("temperature")
    table = table.set_column(place, "temperature", pa.array(said, pa.float32()))
    for scored_at, other in ((0.9, 1), (0.5, SAMPLES - 2), (1.0, SAMPLES - 1)):
        _, summary = weighed(table, weighing("low_prob", temperature=scored_at))
        assert summary.other_temperature == other
    twice = WeightsSummary.merge([summary, summary])
    assert twice.other_temperature == 2 * (SAMPLES - 1)


def test_a_texts_columns_are_of_its_tokens_that_count() -> None:
    table = scores()
    found, _ = weighed(table, weighing("low_prob"))
    for row, source in zip(found, table.to_pylist(), strict=True):
        some = [
            weight
            for weight, m in zip(row["loss_weights"], source["response_mask"], strict=True)
            if m
        ]
        if not some:
            assert row["weight_mean"] is row["weight_min"] is row["share_changed"] is None
            continue
        assert (row["weight_min"], row["weight_max"]) == (min(some), max(some))
        assert row["weight_mean"] == pytest.approx(np.mean(some), rel=1e-6)
        assert row["share_changed"] == pytest.approx(np.mean([w != 1 for w in some]))


def test_schemes_are_multiplied_and_brought_to_mean_one() -> None:
    table = scores()
    apart = [weighed(table, weighing(one))[0] for one in ("low_prob", "delta")]
    both, _ = weighed(table, weighing("low_prob", "delta", mean_one=True))
    for one, other, row, source in zip(*apart, both, table.to_pylist(), strict=True):
        mask = np.array(source["response_mask"], bool)
        product = np.array(one["loss_weights"]) * np.array(other["loss_weights"])
        mean = product[mask].mean() if mask.any() else 1.0
        np.testing.assert_allclose(
            row["loss_weights"], np.where(mask, product / mean, 1.0), rtol=1e-6
        )


def test_texts_of_others_and_rejected_rows_have_no_weights() -> None:
    table = scores()
    generators = ["base"] * 10 + ["rl"] * 5 + [None] * (SAMPLES - 15)
    status = ["ok"] * (SAMPLES - 1) + ["too_long"]
    for name, values in {"generator": generators, "status": status}.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array(values, pa.string()))
    found, summary = weighed(table, weighing("low_prob", others=("rl",)))
    assert summary.status == {"ok": SAMPLES - 6, "other_generator": 5, "too_long": 1}
    for row in found[10:15]:
        assert row["error"] == "written by rl, and π_old is base"
        assert row["loss_weights"] == row["response_ids"] == []
    assert found[9]["loss_weights"]
    assert found[15]["loss_weights"]  # nobody says who wrote it


def test_no_rows_give_no_rows() -> None:
    found, summary = weighed(scores().slice(0, 0), weighing("low_prob"))
    assert (found, summary) == ([], WeightsSummary())


def test_undefined_weights_are_counted() -> None:
    table = scores()
    # Each text a group of its own: no spread anywhere.
    at = table.schema.get_field_index("group_id")
    alone = table.set_column(at, "group_id", pa.array([f"{index}" for index in range(SAMPLES)]))
    how = weighing({"scheme": "ppl", "alpha": 0.1})
    found, summary = weighed(alone, how, whole_of(alone, how))
    assert {weight for row in found for weight in row["loss_weights"]} == {1.0}
    assert summary.undefined == summary.tokens > 0
    # Without a group, the texts of one prompt are one.
    nameless = table.set_column(at, "group_id", pa.nulls(SAMPLES, pa.string()))
    with_tokens = sum(map(any, table["response_mask"].to_pylist()))
    assert SAMPLES > with_tokens > 20
    assert len(whole_of(nameless, how).log_ppl.table) == with_tokens  # type: ignore[union-attr]


def test_a_reward_that_is_missing_is_named() -> None:
    table = scores()
    at = table.schema.get_field_index("reward")
    rewards = pa.array([1.0] * 7 + [None] * (SAMPLES - 7), pa.float32())
    table = table.set_column(at, "reward", rewards)
    how = weighing("future_kl")
    with pytest.raises(Refused, match=r"sample rl-base-3-7 has no reward.*max_ratio"):
        whole_of(table, how)
    free = weighing({"scheme": "future_kl", "max_ratio": None})
    assert weighed(table, free)[1].tokens


def test_a_column_that_was_not_computed_is_named() -> None:
    table = scores()
    at = table.schema.get_field_index("entropy_base")
    table = table.set_column(at, "entropy_base", pa.nulls(SAMPLES, pa.list_(pa.float32())))
    with pytest.raises(Refused, match=r"no entropy_base.*statistics: all"):
        Rows.of(table, weighing("entropy_top"))
