"""Weights in slime: a list a sample, as JSONL, multiplied in by a custom advantage function.

Write what is trained on, once:

    write_jsonl("samples.jsonl", rollouts, load_weights("runs/my-run/weights/low_prob"))

and in the module of ``--custom-advantage-function-path``:

    weighted = read_jsonl("samples.jsonl")

    def advantages(args, rollout_data):
        ...                                          # sets rollout_data["advantages"], a list
        weigh_advantages(rollout_data, weighted)

Rows have slime's own fields (``tokens`` of prompt and response, ``response_length``, ``reward``,
``index``), and ``loss_weights`` beside them. They are no ``loss_mask``, which slime makes integers
of; and advantages must not be whitened afterwards (``--normalize-advantages``).
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlogp_ray.amounts import amount
from dlogp_ray.errors import Refused
from dlogp_ray.weights.rollouts import complete
from dlogp_ray.weights.table import Missing, PerToken

NEEDED = ("sample_id", "prompt_ids", "response_ids")


def write_jsonl(
    path: str | Path,
    rollouts: Iterable[Mapping[str, Any]],
    weights: PerToken,
    *,
    missing: Missing = "error",
) -> int:
    """Write a row a sample; its place in the file is its ``index``.

    Returns:
        How many.

    Raises:
        Refused: A row lacks a column, a sample is not in the table, or its tokens are others there.
            Then no file is written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as sink:
            count = 0
            for line in _lines(rollouts, weights.expected("weights"), missing):
                sink.write(line + "\n")
                count += 1
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return count


def _lines(
    rollouts: Iterable[Mapping[str, Any]], weights: PerToken, missing: Missing
) -> Iterator[str]:
    for index, row in enumerate(complete(rollouts, NEEDED)):
        prompt, response = (list(map(int, row[n])) for n in ("prompt_ids", "response_ids"))
        (of_row,) = weights.of([row["sample_id"]], [response], prompt_ids=[prompt], missing=missing)
        given = row.get("response_mask")
        mask = [1] * len(response) if given is None else list(map(int, given))
        if len(mask) != len(response):
            raise Refused(
                f"sample {row['sample_id']}: its response_mask has {amount(len(mask), 'value')} "
                f"for {amount(len(response), 'token')}"
            )
        reward = row.get("reward")
        sample = {
            "index": index,
            "tokens": prompt + response,
            "response_length": len(response),
            "loss_mask": mask,
            "reward": None if reward is None else float(reward),
            "loss_weights": of_row.tolist(),
            "metadata": {"sample_id": row["sample_id"]},
        }
        yield json.dumps(sample)


def read_jsonl(path: str | Path) -> dict[int, dict[str, Any]]:
    """The rows that ``write_jsonl`` wrote, by their ``index``."""
    with Path(path).open(encoding="utf-8") as lines:
        return {row["index"]: row for row in map(json.loads, lines)}


def weigh_advantages(
    rollout_data: dict[str, Any], weighted: Mapping[int, Mapping[str, Any]]
) -> None:
    """Multiply slime's advantages by the weights, in place.

    Args:
        rollout_data: With ``sample_indices``, ``tokens``, ``response_lengths`` and ``advantages``,
            lists of one entry a sample.
        weighted: What ``read_jsonl`` read.

    Raises:
        Refused: A sample is not there, or its tokens are others.
    """
    names = ("sample_indices", "tokens", "response_lengths", "advantages")
    advantages: list[Tensor] = []
    for index, tokens, length, advantage in zip(*(rollout_data[n] for n in names), strict=True):
        row = weighted.get(int(index))
        if row is None:
            raise Refused(f"slime sample {index} has no weights; write them with write_jsonl")
        if list(map(int, tokens)) != row["tokens"] or int(length) != row["response_length"]:
            raise Refused(
                f"slime sample {index} ({row['metadata']['sample_id']}): it has {len(tokens)} "
                f"tokens, {length} of the response, and they are not the {len(row['tokens'])} and "
                f"{row['response_length']} that its weights were made for"
            )
        weights = torch.tensor(row["loss_weights"], dtype=torch.float32, device=advantage.device)
        if advantage.shape != weights.shape:
            raise Refused(
                f"slime sample {index} ({row['metadata']['sample_id']}): expected an advantage for "
                f"each of its {length} tokens, got {tuple(advantage.shape)}"
            )
        advantages.append(advantage * weights)
    rollout_data["advantages"] = advantages
