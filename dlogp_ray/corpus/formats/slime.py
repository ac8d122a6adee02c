"""slime's debug rollouts: ``--save-debug-rollout-data``, a ``.pt`` with the samples of a rollout.

Layout: slime/utils/types.py, ``Sample.to_dict``: prompt and response in one list, its length, mask
and log-probabilities of the response alone. Reading it runs no code (``weights_only``).
"""

from typing import Any

from dlogp_ray.corpus.formats.format import Format, Record, Row, the_list
from dlogp_ray.errors import RowRejected
from dlogp_ray.status import Status


def rows(record: Record, file: str) -> list[Row]:
    """A row a sample.

    Raises:
        RowRejected: Its response is longer than all of its tokens.
    """
    ids, length = the_list(record, "tokens"), record.get("response_length")
    if type(length) is not int or not 0 <= length <= len(ids):
        raise RowRejected(
            Status.WRONG_TYPE,
            f"response_length: expected 0 to {len(ids)}, what tokens has, got {length!r}",
        )
    begin = len(ids) - length
    number, rollout = record.get("index"), record.get("rollout_id")
    return [
        {
            "sample_id": f"{rollout}/{number}" if number is not None else None,
            "group_id": record.get("group_index"),
            "prompt_ids": ids[:begin],
            "response_ids": ids[begin:],
            "response_mask": record.get("loss_mask"),
            "rollout_logp": record.get("rollout_log_probs"),
            "reward": _reward(record.get("reward")),
        }
    ]


def _reward(reward: Any) -> Any:
    """A number, or the one that a dict has by its usual name."""
    if not isinstance(reward, dict):
        return reward
    numbers = [value for value in reward.values() if isinstance(value, int | float)]
    return reward.get("score", numbers[0] if len(numbers) == 1 else None)


SLIME = Format(
    what="slime's debug rollouts",
    holds="ids, mask, log-probabilities",
    keys=frozenset({"tokens", "response_length", "group_index"}),
    rows=rows,
)
