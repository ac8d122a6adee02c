"""Log-probabilities by one plain pass of transformers, in float64."""

from typing import Any

import torch

Rows = list[dict[str, Any]]


def logps(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """log p of each response token in one plain pass, float64."""
    ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
    logits = model(ids).logits.double()[0, :-1]
    found = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]
    return found[len(row["prompt_ids"]) - 1 :]
