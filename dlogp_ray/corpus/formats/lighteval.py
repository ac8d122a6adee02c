"""lighteval: ``details_{task}_{date}.parquet``, a row a document.

Layout: lighteval/logging/evaluation_tracker.py, lighteval/models/model_output.py. Whether ids are
there is the backend's doing; without them the query's text is one user message.
"""

import re

from dlogp_ray.corpus.formats.format import Format, Record, Row, lists
from dlogp_ray.corpus.paths import value_at

_FILE = re.compile(r"details_(.+?)_\d{4}-\d\d-\d\dT[\d.:-]+\.parquet$")


def rows(record: Record, file: str) -> list[Row]:
    """A row an answer."""
    called = _FILE.search(file)
    document = f"{called[1] if called else file}/{value_at(record, 'doc.id')}"
    metrics = [value for value in (record.get("metric") or {}).values() if value is not None]
    prompt: Row = {"prompt_ids": value_at(record, "model_response.input_tokens") or None}
    if prompt["prompt_ids"] is None:
        query = value_at(record, "doc.query")
        prompt = {"messages": [{"role": "user", "content": query}]}
    ids = value_at(record, "model_response.output_tokens") or []
    text = "model_response.text"
    numbered = enumerate(lists(record, text, *(["model_response.output_tokens"] if ids else [])))
    return [
        prompt
        | {
            "sample_id": f"{document}/{number}",
            "group_id": document,
            "response": answer[0],
            "response_ids": answer[1] if ids and "prompt_ids" in prompt else None,
            "reward": metrics[0] if len(metrics) == 1 else None,
        }
        for number, answer in numbered
    ]


LIGHTEVAL = Format(
    what="lighteval's details",
    holds="ids where the backend has them, else the question",
    keys=frozenset({"doc", "model_response", "metric"}),
    rows=rows,
)
