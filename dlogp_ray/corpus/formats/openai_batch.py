"""Batches of the OpenAI API, and of vLLM's ``run-batch``: a line a request, with its choices.

Layout: the API's batch output; vllm/entrypoints/openai/protocol.py. Prompts are in the request
alone: only ``return_token_ids: true`` (vLLM) puts their ids into the answer, and the choices'.
"""

from typing import Any

from dlogp_ray.corpus.formats.format import Format, Record, Row, the_list
from dlogp_ray.corpus.paths import value_at
from dlogp_ray.errors import RowRejected
from dlogp_ray.status import Status


def rows(record: Record, file: str) -> list[Row]:
    """A row a choice.

    Raises:
        RowRejected: The request failed, or its answer has no ids.
    """
    if (error := record.get("error")) is not None:
        raise RowRejected(Status.MALFORMED, f"the request failed: {error!r:.200}")
    request = record.get("custom_id")
    made = []
    for number, choice in enumerate(the_list(record, "response.body.choices")):
        prompt = choice.get("prompt_token_ids") or value_at(
            record, "response.body.prompt_token_ids"
        )
        if prompt is None or choice.get("token_ids") is None:
            raise RowRejected(
                Status.MISSING_COLUMN,
                "choices: there are no prompt_token_ids and token_ids; send requests with "
                "return_token_ids: true",
            )
        made.append(
            {
                "sample_id": f"{request}/{choice.get('index', number)}",
                "group_id": request,
                "prompt_ids": prompt,
                "response_ids": choice["token_ids"],
                "rollout_logp": _logps(choice),
            }
        )
    return made


def _logps(choice: dict[str, Any]) -> list[float | None] | None:
    content = value_at(choice, "logprobs.content")
    if isinstance(content, list):
        return [one.get("logprob") for one in content]
    tokens = value_at(choice, "logprobs.token_logprobs")  # of completions
    return tokens if isinstance(tokens, list) else None


OPENAI_BATCH = Format(
    what="an OpenAI batch's output",
    holds="ids with `return_token_ids`, log-probabilities",
    keys=frozenset({"custom_id", "response"}),
    rows=rows,
)
