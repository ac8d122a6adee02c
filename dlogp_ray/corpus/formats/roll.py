"""ROLL's ``rollout_dump_data.step_N.jsonl``: a line of lists.

Layout: roll/pipeline/rlvr/utils.py, ``dump_rollout_to_specific_path``. Prompts are rendered again
from their messages; answers were decoded without special tokens, which only their end has.
"""

import json

from dlogp_ray.corpus.formats.format import Format, Record, Row, lists
from dlogp_ray.errors import RowRejected
from dlogp_ray.status import Status


def rows(record: Record, file: str) -> list[Row]:
    """A row an element."""
    sampling = record.get("sampling_params")
    settings = sampling if isinstance(sampling, dict) else {}
    return [
        {
            "group_id": group,
            "messages": _messages(messages),
            "response": response,
            "reward": score,
            "temperature": settings.get("temperature"),
            "top_p": settings.get("top_p"),
        }
        for response, group, messages, score in lists(
            record, "responses", "id", "messages", "scores"
        )
    ]


def _messages(text: object) -> object:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise RowRejected(Status.MALFORMED, f"messages: not JSON: {error}") from None


ROLL = Format(
    what="ROLL's rollouts",
    holds="messages; answers without special tokens",
    keys=frozenset({"responses", "messages", "scores"}),
    rows=rows,
)
