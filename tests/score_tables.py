"""Score rows, and runs of them, made up for statistics: correlated, heavy tails, masks."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from run_records import put_object, score_info

from dlogp_ray.analysis.summary import summarise
from dlogp_ray.tables.encoding import encode_table
from dlogp_ray.tables.run import Run, begin_run
from dlogp_ray.tables.scores import scores_schema
from dlogp_ray.tables.sealing import seal

_NO_UNITS = pa.table({"index": pa.array([], pa.int64())})


def score_rows(
    samples: int,
    *,
    seed: int = 0,
    policy: str = "rl",
    generator: str | None = "base",
    length: int = 40,
    masked: float = 0.1,
    more: Mapping[str, list[object]] | None = None,
) -> pa.Table:
    """Rows of the scores table, with the columns that statistics are made of."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 2 * length, samples)
    n = int(lengths.sum())
    level = np.repeat(rng.gamma(2.0, 0.5, samples), lengths)  # of a sample's own
    entropy = level * rng.gamma(0.4, 1.0, n)
    logp_base = -level * rng.gamma(0.3, 1.0, n)
    logp_rl = np.minimum(logp_base + 0.3 * entropy * rng.standard_t(3, n), 0.0)
    base, rl = logp_base.astype(np.float32), logp_rl.astype(np.float32)
    delta = rl - base
    columns = {
        "response_ids": rng.zipf(1.5, n).clip(0, 1_000).astype(np.int32),
        "response_mask": rng.random(n) >= masked,
        "logp_base": base,
        "logp_rl": rl,
        "delta_logp": delta,
        "entropy_base": entropy.astype(np.float32),
        "entropy_rl": (0.9 * entropy).astype(np.float32),
        "kl_rl_base": (delta**2 / 2).astype(np.float32),
        "kl_base_rl": (delta**2 / 3).astype(np.float32),
        "js": np.minimum(delta**2 / 8, np.log(2)).astype(np.float32),
        "top1_agree": np.abs(delta) < 0.5,
        "logp_base_of_rl_top1": np.minimum(base, -0.01 * entropy).astype(np.float32),
        "rank_base_of_rl_top1": rng.geometric(0.4, n).astype(np.int32) - 1,
    }
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.table(
        {
            "sample_id": [f"{policy}-{generator}-{seed}-{i}" for i in range(samples)],
            "status": ["ok"] * samples,
            "policy": [policy] * samples,
            "generator": pa.array([generator] * samples, pa.string()),
            "step": pa.array([None] * samples, pa.int32()),
            **{
                name: pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
                for name, values in columns.items()
            },
            **(more or {}),
        }
    )


def made_up_run(
    uri: str,
    units: Iterable[pa.Table],
    *,
    planned: int | None = None,
    carry: Mapping[str, str] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Run:
    """A run of score rows, an object each; sealed, unless more units are planned.

    Columns that no statistic is made of are null, or 0.
    """
    schema, carry = scores_schema(carry or {}), dict(carry or {})
    objects = [_whole(rows, schema) for rows in units]
    count = len(objects) if planned is None else planned
    said = {"carry": carry, "config": {"policies": {"base": {}, "rl": {}}}, "compared": ["rl"]}
    record = score_info(count, said | dict(info or {}))
    run = begin_run(uri, record, {"units.parquet": encode_table(_NO_UNITS)})
    for index, whole in enumerate(objects):
        put_object(run, index, whole, summary=summarise(whole).model_dump())
    return seal(run) if count == len(objects) else run


def _whole(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = {}
    for field in schema:
        if field.name in rows.column_names:
            columns[field.name] = rows[field.name].cast(field.type)
        elif field.nullable:
            columns[field.name] = pa.nulls(len(rows), field.type)
        else:
            value = {"source_file": "corpus.jsonl", "source_offset": 0, "from_text": False}
            columns[field.name] = pa.repeat(pa.scalar(value[field.name], field.type), len(rows))
    return pa.table(columns, schema=schema)
