"""A unit's rows become the table's rows: what is kept, filled, rejected. The scorer is a stub."""

import hashlib
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dlogp_ray.corpus.rows import RowRules, unit_schema
from dlogp_ray.policies.packing import places
from dlogp_ray.scoring.scorer import PairScorer, Scored
from dlogp_ray.scoring.statistics import SAMPLED_STATISTICS
from dlogp_ray.scoring.unit import score_unit
from dlogp_ray.tables.encoding import check_lists
from dlogp_ray.tables.scores import (
    BASE_STATISTICS,
    PAIR_STATISTICS,
    RL_STATISTICS,
    STATISTICS,
    scores_schema,
)
from dlogp_ray.tables.token_hash import token_hash

CARRY = {"difficulty": "int64", "note": "string", "rollout_logp": "floats"}
PAIR_ONLY = set(PAIR_STATISTICS) - {"delta_logp"}


class StubScorer(PairScorer):
    """Answers like a ``PairScorer``; logp is the token id times a factor of the policy's own.

    Args:
        logp_factor: By policy.
        base: The one without pair statistics.
        spoil: (policy, statistic, value): the last token's value is replaced.
    """

    def __init__(
        self,
        logp_factor: dict[str, float],
        base: str | None = "base",
        spoil: tuple[str, str, float] | None = None,
    ) -> None:
        self.logp_factor, self.base, self.spoil = logp_factor, base, spoil  # no policies

    def score(self, sequences: Any) -> Scored:
        texts = [text.response_ids for text in sequences]
        columns = {
            policy: {name: np.concatenate(parts) for name, parts in self._of_all(policy, texts)}
            for policy in self.logp_factor
        }
        return Scored(columns if texts else {}, places(sequences))

    def _of_all(self, policy: str, texts: list[np.ndarray]) -> list[tuple[str, list[np.ndarray]]]:
        each = [self._arrays(policy, ids) for ids in texts]
        return [(name, [arrays[name] for arrays in each]) for name in (each[0] if each else ())]

    def _arrays(self, policy: str, ids: np.ndarray) -> dict[str, np.ndarray]:
        floats = np.full(len(ids), 0.25, np.float32)
        arrays = {
            "logp": (-self.logp_factor[policy] * ids).astype(np.float32),
            "entropy": floats,
            "max_logp": -floats,
            "rank": ids - 1,
            "top1_id": ids + 1,
            "outside": floats * 0,
        }
        if self.base is not None and policy != self.base:
            arrays |= {name: floats.copy() for name in PAIR_ONLY}
            arrays["top1_agree"] = np.ones(len(ids), bool)
            arrays["rank_base_of_rl_top1"] = ids * 0
        if self.spoil and self.spoil[0] == policy:
            arrays[self.spoil[1]] = arrays[self.spoil[1]].copy()
            arrays[self.spoil[1]][-1] = self.spoil[2]
        return arrays


def make_unit(*changes: dict[str, Any]) -> pa.Table:
    """Checked corpus rows: one for each dict of changes."""
    rules = RowRules(vocab_size=24, max_tokens=None, carry=CARRY)
    rows = [
        {
            "sample_id": f"s{index}",
            "group_id": "g",
            "generator": "rl",
            "temperature": 1.0,
            "top_p": 0.75,
            "reward": 0.5,
            "from_text": False,
            "prompt_ids": [4, 5],
            "response_ids": [2, 3, 7],
            "response_mask": [True, True, False],
            "status": "ok",
            "error": None,
            "source_file": "corpus.jsonl",
            "source_offset": 100 * index,
            "difficulty": 10 + index,
            "note": "n",
            "rollout_logp": [-0.5, None, -1.0],
        }
        | change
        for index, change in enumerate(changes)
    ]
    return pa.Table.from_pylist(rows, schema=unit_schema(rules))


REJECTED = {
    "status": "too_long",
    "error": "expected at most 64 tokens, got 65",
    "prompt_ids": [],
    "response_ids": [],
    "response_mask": [],
    "rollout_logp": None,
}


def score(unit: pa.Table, scorer: Any, **changes: Any) -> pa.Table:
    settings = {"base": "base", "compared": ["rl"], "steps": {}, "carry": CARRY} | changes
    table = score_unit(unit, scorer, **settings)
    assert table.schema == scores_schema(CARRY)
    check_lists(table)
    return table


def test_every_row_comes_out_once_for_each_compared_policy_in_order() -> None:
    scorer = StubScorer({"base": 1.0, "early": 0.5, "late": 0.25})
    table = score(
        make_unit({}, REJECTED, {}),
        scorer,
        compared=["early", "late"],
        steps={"early": 10, "late": None},
    )
    assert table["sample_id"].to_pylist() == ["s0", "s0", "s1", "s1", "s2", "s2"]
    assert table["policy"].to_pylist() == ["early", "late"] * 3
    assert table["step"].to_pylist() == [10, None] * 3
    assert table["source_offset"].to_pylist() == [0, 0, 100, 100, 200, 200]
    assert table["status"].to_pylist() == ["ok", "ok", "too_long", "too_long", "ok", "ok"]
    # ids 2, 3, 7: base -2, -3, -7; early half of it, late a quarter
    assert table["delta_logp"].to_pylist()[:2] == [[1.0, 1.5, 3.5], [1.5, 2.25, 5.25]]
    assert table["logp_base"].to_pylist()[:2] == [[-2.0, -3.0, -7.0]] * 2


def test_a_scored_row_keeps_what_the_corpus_says_of_it() -> None:
    (row,) = score(make_unit({}), StubScorer({"base": 1.0, "rl": 0.5})).to_pylist()
    kept = make_unit({}).to_pylist()[0]
    for name in kept.keys() - {"prompt_ids", "special_tokens"}:
        assert row[name] == kept[name], name
    assert row["prompt_len"] == 2
    assert (row["rank_rl"], row["top1_id_base"]) == ([1, 2, 6], [3, 4, 8])
    assert row["top1_agree"] == [True, True, True]


def test_a_rejected_row_keeps_its_status_with_empty_lists() -> None:
    (row,) = score(make_unit(REJECTED), StubScorer({"base": 1.0, "rl": 0.5})).to_pylist()
    assert (row["status"], row["error"]) == ("too_long", "expected at most 64 tokens, got 65")
    assert {name for name in STATISTICS if row[name] != []} == set()
    assert (row["response_ids"], row["response_mask"]) == ([], [])
    assert (row["token_hash"], row["prompt_hash"], row["prompt_len"]) == (None, None, None)
    assert (row["difficulty"], row["sample_id"]) == (10, "s0")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (("rl", "logp", np.nan), "logp_rl is nan at response token 2"),
        (("base", "entropy", np.nan), "entropy_base is nan at response token 2"),
        (("rl", "kl_rl_base", np.inf), "kl_rl_base is inf at response token 2"),
        (("base", "logp", -np.inf), "logp_base is -inf at response token 2"),
    ],
)
def test_a_number_that_is_not_finite_rejects_its_row(
    spoil: tuple[str, str, float], named: str
) -> None:
    scorer = StubScorer({"base": 1.0, "rl": 0.5}, spoil=spoil)
    (row,) = score(make_unit({}), scorer).to_pylist()
    assert (row["status"], row["error"]) == ("not_finite", named)
    assert {name for name in (*STATISTICS, "response_ids") if row[name] != []} == set()
    # what was asked stays known, so that the row can be found in the corpus
    assert row["token_hash"] == token_hash([2, 3, 7])


def test_only_the_policy_that_is_not_finite_is_rejected() -> None:
    scorer = StubScorer({"base": 1.0, "a": 0.5, "b": 0.5}, spoil=("b", "logp", np.nan))
    table = score(make_unit({}), scorer, compared=["a", "b"])
    assert table["status"].to_pylist() == ["ok", "not_finite"]
    assert table["rollout_logp"].to_pylist() == [[-0.5, None, -1.0], None]


@pytest.mark.parametrize(
    ("policy", "mass", "status"),
    [
        ("rl", 0.002, "mass_outside_vocabulary"),
        ("base", 0.002, "mass_outside_vocabulary"),
        ("rl", 0.0009, "ok"),  # below the 1e-3 that may be left out
    ],
)
def test_mass_outside_the_common_vocabulary(policy: str, mass: float, status: str) -> None:
    scorer = StubScorer({"base": 1.0, "rl": 0.5}, spoil=(policy, "outside", mass))
    (row,) = score(make_unit({}), scorer).to_pylist()
    assert row["status"] == status
    assert status == "ok" or "0.002" in row["error"]


@pytest.mark.parametrize(("policy", "filled"), [("base", BASE_STATISTICS), ("sft", RL_STATISTICS)])
def test_a_policy_alone_fills_its_own_columns(policy: str, filled: tuple[str, ...]) -> None:
    scorer = StubScorer({policy: 1.0}, base=None)
    row, rejected = score(
        make_unit({}, REJECTED), scorer, base=None, compared=[policy], steps={policy: 0}
    ).to_pylist()
    assert {name for name in STATISTICS if row[name] is not None} == set(filled)
    assert row[filled[0]] == [-2.0, -3.0, -7.0]  # logp_base or logp_rl
    assert {name for name in STATISTICS if rejected[name] == []} == set(filled)
    assert row["step"] == 0


def test_an_empty_unit_gives_an_empty_table() -> None:
    assert len(score(make_unit(), StubScorer({"base": 1.0, "rl": 0.5}))) == 0


def test_token_hash_is_blake2b_over_little_endian_int32() -> None:
    ids = [2, 3, 70_000]
    data = b"".join(struct.pack("<i", value) for value in ids)
    assert data[:5] == b"\x02\x00\x00\x00\x03"
    assert token_hash(ids) == hashlib.blake2b(data, digest_size=16).hexdigest()
    assert token_hash([]) == hashlib.blake2b(b"", digest_size=16).hexdigest()


def test_sampled_statistics_alone_leave_the_other_columns_null() -> None:
    class Sampled(StubScorer):
        def _arrays(self, policy: str, ids: np.ndarray) -> dict[str, np.ndarray]:
            whole = super()._arrays(policy, ids)
            return {name: whole[name] for name in SAMPLED_STATISTICS}

    (row,) = score(make_unit({}), Sampled({"base": 1.0, "rl": 0.5})).to_pylist()
    filled = {name for name in STATISTICS if row[name] is not None}
    assert filled == {"logp_base", "logp_rl", "delta_logp"}
    assert row["delta_logp"] == [1.0, 1.5, 3.5]  # half of the ids 2, 3, 7
