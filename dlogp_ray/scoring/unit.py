"""A unit's checked corpus rows -> its rows of the scores table.

All tokens of a unit stay in one array a statistic, from the scorer to the table's list columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.scoring.scorer import MAX_MASS_OUTSIDE, Arrays, PairScorer, Scored
from dlogp_ray.status import Status
from dlogp_ray.tables.scores import (
    BASE_STATISTICS,
    PAIR_STATISTICS,
    RL_STATISTICS,
    STATISTIC_FIELDS,
    scores_schema,
)
from dlogp_ray.tables.token_hash import token_hash

_KEPT = (
    "sample_id group_id generator temperature top_p reward from_text response_ids response_mask "
    "status error source_file source_offset"
).split()
"""Columns of a corpus row that are the table's too."""


@dataclass(frozen=True)
class _ScoredRows:
    """A unit's rows with what was scored of them.

    Shapes: n rows, of which m are scored, with t response tokens in all.

    Attributes:
        rows: [n] by ``corpus.rows.unit_schema``.
        ok: [n] which of them are scored.
        scored: Of these.
        identity: Columns of the table that follow from the rows alone.
    """

    rows: pa.Table
    ok: Bool[np.ndarray, " n"]
    scored: Scored
    identity: dict[str, pa.Array]

    def spread(self, values: Int[np.ndarray, " m"]) -> Int[np.ndarray, " n"]:
        """Numbers of the scored rows among all, 0 at the others."""
        all_rows = np.zeros(len(self.ok), values.dtype)
        all_rows[self.ok] = values
        return all_rows


def score_unit(
    rows: pa.Table,
    scorer: PairScorer,
    *,
    base: str | None,
    compared: Sequence[str],
    steps: Mapping[str, int | None],
    carry: Mapping[str, str],
) -> pa.Table:
    """Score all rows that the corpus checks let through; the others keep their status.

    Args:
        rows: By ``corpus.rows.unit_schema``.
        scorer: Holds all policies.
        base: The policy that the others are compared with, None for a policy alone.
        compared: The policies that get a row a sample.
        steps: Training step of each, where known.
        carry: Carried column -> type.

    Returns:
        ``len(rows) * len(compared)`` rows by ``tables.scores.scores_schema``, those of one sample
        next to each other.
    """
    schema = scores_schema(carry)
    if not len(rows):
        return schema.empty_table()
    ok = rows["status"].to_numpy() == Status.OK
    chosen = rows.filter(pa.array(ok))
    prompts, responses = _arrays(chosen["prompt_ids"]), _arrays(chosen["response_ids"])
    texts = [TokenSequence(*pair) for pair in zip(prompts, responses, strict=True)]
    identity = {name: rows[name].combine_chunks() for name in (*_KEPT, *carry)}
    for name, lists in (("token_hash", responses), ("prompt_hash", prompts)):
        hashes = iter([token_hash(ids) for ids in lists])
        identity[name] = pa.array([next(hashes) if there else None for there in ok], pa.string())
    lengths = pc.list_value_length(rows["prompt_ids"].combine_chunks())
    identity["prompt_len"] = pc.if_else(pa.array(ok), lengths, pa.scalar(None, pa.int32()))
    unit = _ScoredRows(rows, ok, scorer.score(texts), identity)
    parts = [_of_policy(unit, policy, base, steps.get(policy), schema) for policy in compared]
    side_by_side = np.arange(len(rows) * len(parts)).reshape(len(parts), -1).T.ravel()
    whole = pa.concat_tables(parts)
    return whole if len(parts) == 1 else whole.take(pa.array(side_by_side))


def _of_policy(
    unit: _ScoredRows, policy: str, base: str | None, step: int | None, schema: pa.Schema
) -> pa.Table:
    """The rows of one policy; where statistics are not fit for the table, rejections instead."""
    n = len(unit.rows)
    columns: dict[str, pa.Array] = dict(unit.identity)
    columns["policy"] = pa.repeat(pa.scalar(policy), n)
    columns["step"] = pa.repeat(pa.scalar(step, pa.int32()), n)
    named = _columns(policy, base)
    arrays = table_columns(unit.scored.columns, policy, base) if len(unit.scored) else {}
    there = {name: arrays[name] for name in named if name in arrays}  # fewer of sampled tokens
    starts = unit.scored.starts
    problems = _problems(there, arrays, starts)
    fit = np.ones(len(unit.scored), bool)
    fit[list(problems)] = False
    lengths = np.where(fit, np.diff(starts), 0)
    kept = np.repeat(fit, np.diff(starts))
    offsets = np.concatenate([[0], np.cumsum(unit.spread(lengths))]).astype(np.int32)
    if problems:
        columns |= _rejected(unit, problems)
        good = np.zeros(n, bool)
        good[np.flatnonzero(unit.ok)[fit]] = True
        for name, column in unit.identity.items():  # carried lists
            if pa.types.is_list(column.type):
                none = pa.scalar(None, column.type)
                columns[name] = pc.if_else(pa.array(good), column, none)
        for name in ("response_ids", "response_mask"):
            flat = unit.rows.filter(pa.array(unit.ok))[name].combine_chunks().flatten()
            columns[name] = pa.ListArray.from_arrays(offsets, flat.filter(pa.array(kept)))
    for field in STATISTIC_FIELDS:
        if field.name in there:
            values = there[field.name][kept] if problems else there[field.name]
            flat = pa.array(values, field.type.value_type)
            columns[field.name] = pa.ListArray.from_arrays(offsets, flat)
        elif field.name in named:  # not computed; of a row that is rejected an empty list
            lists = pa.repeat(pa.scalar([], field.type), n)
            null = pa.scalar(None, field.type)
            columns[field.name] = pc.if_else(pa.array(unit.ok), null, lists)
        else:
            columns[field.name] = pa.nulls(n, field.type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _rejected(unit: _ScoredRows, problems: Mapping[int, tuple[Status, str]]) -> dict[str, pa.Array]:
    """Status and error of all rows, where scores of some are not fit."""
    place = np.flatnonzero(unit.ok)
    status, error = (unit.rows[name].to_pylist() for name in ("status", "error"))
    for text, problem in problems.items():
        status[place[text]], error[place[text]] = problem
    return {"status": pa.array(status, pa.string()), "error": pa.array(error, pa.string())}


def table_columns(scored: Mapping[str, Arrays], policy: str, base: str | None) -> Arrays:
    """Statistics of one policy's rows, and the mass outside, under their names in the table."""
    arrays: Arrays = {}
    if base is not None:
        arrays |= {f"{key}_base": value for key, value in scored[base].items()}
    suffix = "rl" if "logp_rl" in _columns(policy, base) else "base"
    arrays |= {
        key if key in PAIR_STATISTICS else f"{key}_{suffix}": value
        for key, value in scored[policy].items()
    }
    if base is not None:
        arrays["delta_logp"] = arrays["logp_rl"] - arrays["logp_base"]
    return arrays


def _columns(policy: str, base: str | None) -> tuple[str, ...]:
    if base is not None:
        return BASE_STATISTICS + RL_STATISTICS + PAIR_STATISTICS
    return BASE_STATISTICS if policy == "base" else RL_STATISTICS


def _problems(
    columns: Arrays, arrays: Arrays, starts: Int[np.ndarray, " m"]
) -> dict[int, tuple[Status, str]]:
    """Why the statistics of a text are not fit for the table: text -> status and error."""
    problems: dict[int, tuple[Status, str]] = {}
    for name, values in columns.items():
        for token in np.flatnonzero(~np.isfinite(values)).tolist():
            text = int(np.searchsorted(starts, token, side="right")) - 1
            position = token - int(starts[text])
            error = f"{name} is {values[token]} at response token {position}"
            problems.setdefault(text, (Status.NOT_FINITE, error))
    for name in ("outside_base", "outside_rl"):
        if name in arrays:
            most = np.maximum.reduceat(arrays[name], starts[:-1])
            for text in np.flatnonzero(most > MAX_MASS_OUTSIDE).tolist():
                error = (
                    f"one policy gives probability {float(most[text]):.3g} to ids that the "
                    f"other does not have (at most {MAX_MASS_OUTSIDE} can be left out)"
                )
                problems.setdefault(text, (Status.MASS_OUTSIDE_VOCABULARY, error))
    return problems


def _arrays(lists: pa.ChunkedArray) -> list[Int[np.ndarray, " _"]]:
    """Each list as a part of one array."""
    whole = lists.combine_chunks()
    flat = whole.flatten().to_numpy()
    ends = np.cumsum(pc.list_value_length(whole).to_numpy())
    return np.split(flat, ends[:-1]) if len(ends) else []
