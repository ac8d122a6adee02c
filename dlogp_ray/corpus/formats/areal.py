"""AReaL's rollouts: ``rollout/{version}/{task_id}.jsonl``.

Layout: areal workflow_executor.py. Special tokens are kept in both texts, which can still have
other ids than those that were sampled: their numbers are known, and looked at when the texts are
tokenised (``prompt_len``, ``seqlen``). An answer of several turns has ``segments``, and no ids.
"""

from dlogp_ray.corpus.formats.format import Format, Record, Row
from dlogp_ray.errors import RowRejected
from dlogp_ray.status import Status


def rows(record: Record, file: str) -> list[Row]:
    """A row a line.

    Raises:
        RowRejected: It has several turns.
    """
    roles = [part.get("role") for part in record.get("segments") or [] if isinstance(part, dict)]
    if roles.count("assistant") > 1:
        raise RowRejected(
            Status.MISSING_COLUMN,
            "segments: an answer of several turns is text without a mask; expected one turn",
        )
    lengths = record.get("prompt_len"), record.get("seqlen")
    both = all(type(length) is int for length in lengths)
    return [
        {
            "sample_id": f"{record.get('task_id')}/{record.get('sample_idx')}",
            "group_id": record.get("task_id"),
            "prompt": record.get("prompt"),
            "response": record.get("completion"),
            "reward": record.get("reward"),
            "expected_prompt_length": lengths[0],
            "expected_response_length": lengths[1] - lengths[0] if both else None,  # type: ignore[operator]
        }
    ]


AREAL = Format(
    what="AReaL's rollouts",
    holds="rendered texts, and how many tokens they had",
    keys=frozenset({"task_id", "sample_idx", "seqlen", "prompt_len", "completion"}),
    rows=rows,
    rendered=True,
)
