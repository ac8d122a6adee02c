"""Weights tables made without a job: of given samples, tokens and weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from run_records import put_object, reweight_info
from torch.utils.data import Dataset

from dlogp_ray.tables.encoding import encode_table
from dlogp_ray.tables.run import Run, begin_run
from dlogp_ray.tables.sealing import seal
from dlogp_ray.tables.token_hash import token_hash
from dlogp_ray.tables.weights import WEIGHTS_SCHEMA, WeightsSummary
from dlogp_ray.weights.table import PerToken


def weights_row(
    sample_id: str, response_ids: Sequence[int], weights: Sequence[float], **more: Any
) -> dict[str, Any]:
    """A row of the table; the prompt is [2, 3] unless ``prompt_ids`` says otherwise."""
    prompt = more.pop("prompt_ids", [2, 3])
    return {
        "sample_id": sample_id,
        "policy": "base",
        "status": "ok",
        "token_hash": token_hash(response_ids),
        "prompt_hash": token_hash(prompt),
        "response_ids": list(response_ids),
        "loss_weights": list(weights),
        **more,
    }


def made_up_weights(
    uri: str, units: Sequence[Sequence[Mapping[str, Any]]], scores: str = "none"
) -> Run:
    """A sealed weights table, an object for each list of rows; ``scores`` is a hash."""
    info = reweight_info(len(units), {"fingerprint": {"scores": scores, "schemes": []}})
    run = begin_run(uri, info, {"units.parquet": encode_table(pa.table({"index": [0]}))})
    for index, rows in enumerate(units):
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=WEIGHTS_SCHEMA)
        summary = WeightsSummary(status={"ok": len(rows)}).model_dump()
        put_object(run, index, table, summary=summary)
    return seal(run)


class LookedUp(Dataset[dict[str, Any]]):
    """Rows of a table over and over, each with its weights as a trainer's worker looks them up."""

    def __init__(self, weights: PerToken, rows: Sequence[Mapping[str, Any]], length: int) -> None:
        self.weights, self.rows, self.length = weights, rows, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index % len(self.rows)]
        found = self.weights.batch([row["sample_id"]], [row["response_ids"]], 3)
        return {"index": index, "weights": found[0]}
