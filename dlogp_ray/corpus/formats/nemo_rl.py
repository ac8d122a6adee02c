"""NeMo-RL's ``train_data_step{N}.jsonl``: one list of padded ids, each field in a list of one.

Layout: nemo_rl/algorithms/grpo.py and nemo_rl/utils/logger.py, ``log_batched_dict_as_jsonl``.
"""

from typing import Any

from dlogp_ray.corpus.formats.format import Format, Record, Row, cut_by_mask
from dlogp_ray.errors import RowRejected
from dlogp_ray.status import Status


def rows(record: Record, file: str) -> list[Row]:
    """A row a line; what is padded is cut off."""
    ids, mask = _one(record, "token_ids"), _one(record, "token_loss_mask")
    length = _one(record, "input_lengths")
    if not isinstance(ids, list) or not isinstance(mask, list):
        raise RowRejected(Status.WRONG_TYPE, "token_ids, token_loss_mask: expected lists of lists")
    if type(length) is not int or not 0 <= length <= min(len(ids), len(mask)):
        raise RowRejected(
            Status.WRONG_TYPE,
            f"input_lengths: expected a length of 0 to {len(ids)}, what token_ids has, got "
            f"{length}",
        )
    logps = _one(record, "generation_logprobs")
    row = cut_by_mask(
        ids[:length], mask[:length], logps[:length] if isinstance(logps, list) else None
    )
    rewards = (_one(record, name) for name in ("filtered_rewards", "rewards"))
    row["reward"] = next((reward for reward in rewards if reward is not None), None)
    return [row]


def _one(record: Record, name: str) -> Any:
    value = record.get(name)
    return value[0] if isinstance(value, list) and len(value) == 1 else value


NEMO_RL = Format(
    what="NeMo-RL's training data",
    holds="ids, mask, log-probabilities",
    keys=frozenset({"token_ids", "token_loss_mask", "input_lengths"}),
    rows=rows,
)
