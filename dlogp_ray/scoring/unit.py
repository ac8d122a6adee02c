"""A unit's checked corpus rows -> its rows of the scores table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dlogp_ray.scoring.packing import TokenSequence
from dlogp_ray.scoring.scorer import MAX_MASS_OUTSIDE, Arrays, PairScorer
from dlogp_ray.status import Status
from dlogp_ray.tables.scores import (
    BASE_STATISTICS,
    PAIR_STATISTICS,
    RL_STATISTICS,
    scores_schema,
)
from dlogp_ray.tables.token_hash import token_hash


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
    samples = rows.to_pylist()
    ok = [index for index, sample in enumerate(samples) if sample["status"] == Status.OK]
    sequences = [
        TokenSequence(
            np.asarray(samples[index]["prompt_ids"], dtype=np.int32),
            np.asarray(samples[index]["response_ids"], dtype=np.int32),
        )
        for index in ok
    ]
    scored = dict(zip(ok, scorer.score(sequences), strict=True))
    out = []
    for index, sample in enumerate(samples):
        for policy in compared:
            row = _identity(sample, policy, steps.get(policy), carry)
            out.append(row | _statistics(scored.get(index), policy, base, row))
    return pa.Table.from_pylist(out, schema=scores_schema(carry))


def _identity(
    sample: dict[str, Any], policy: str, step: int | None, carry: Mapping[str, str]
) -> dict[str, Any]:
    kept = (
        "sample_id group_id generator temperature top_p reward from_text response_ids "
        "response_mask status error source_file source_offset"
    ).split()
    row = {name: sample[name] for name in (*kept, *carry)} | {"policy": policy, "step": step}
    if sample["status"] == Status.OK:
        row["token_hash"] = token_hash(sample["response_ids"])
        row["prompt_hash"] = token_hash(sample["prompt_ids"])
        row["prompt_len"] = len(sample["prompt_ids"])
    return row


def _statistics(
    scored: dict[str, Arrays] | None, policy: str, base: str | None, row: dict[str, Any]
) -> dict[str, Any]:
    """The row's statistics; where they are not fit for the table, its rejection instead."""
    columns = _columns(policy, base)
    if scored is None:
        return {name: [] for name in columns}
    arrays = table_columns(scored, policy, base)
    columns = tuple(name for name in columns if name in arrays)  # fewer of sampled tokens alone
    problem = _problem({name: arrays[name] for name in columns}, arrays)
    if problem:
        status, error = problem
        emptied: dict[str, Any] = {name: [] for name in (*columns, "response_ids", "response_mask")}
        return {"status": status, "error": error, **emptied}
    return {name: arrays[name] for name in columns}


def table_columns(scored: Mapping[str, Arrays], policy: str, base: str | None) -> Arrays:
    """Statistics of one policy's row, and the mass outside, under their names in the table."""
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


def _problem(columns: Arrays, arrays: Arrays) -> tuple[Status, str] | None:
    for name, values in columns.items():
        finite = np.isfinite(values)
        if not finite.all():
            position = int(np.argmin(finite))
            return Status.NOT_FINITE, f"{name} is {values[position]} at response token {position}"
    for name in ("outside_base", "outside_rl"):
        if name in arrays and float(arrays[name].max()) > MAX_MASS_OUTSIDE:
            return Status.MASS_OUTSIDE_VOCABULARY, (
                f"one policy gives probability {float(arrays[name].max()):.3g} to ids that the "
                f"other does not have (at most {MAX_MASS_OUTSIDE} can be left out)"
            )
    return None
