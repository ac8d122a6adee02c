"""A job file to begin with: every field that one mostly sets, with what it is, and a schema."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dlogp_ray.config.job import JobConfig
from dlogp_ray.config.score import ScoreConfig

_LEFT = {
    "temperature": "logits are divided by it; as the texts were sampled, or 1.0",
    "statistics": "all, or sampled: log-probabilities of the sampled tokens alone, for less",
    "prompt_format": "raw | chat: one user message of the chat template | rendered",
    "append_eos": "score an end-of-sequence token after each text response",
    "where": '"reward > 0": which rows, in SQL over a row\'s columns',
    "unit_tokens": "of a work unit: 1 to 5 minutes of an actor",
}
"""Fields that are left to their defaults, shown as comments."""


def schema_of(kind: type[JobConfig]) -> str:
    """The JSON schema of a job's file, for editors."""
    return json.dumps(kind.model_json_schema(mode="validation"), indent=2) + "\n"


def score_job_file(
    *,
    corpus: Sequence[str | Mapping[str, Any]],
    policies: Mapping[str, str],
    output: str,
    run_id: str,
    carry: Sequence[str],
    possible: Sequence[str],
    schema: str,
) -> str:
    """A commented job file.

    Args:
        corpus: Its entries.
        policies: Name -> where it comes from.
        output: Where the run goes.
        run_id: Its name.
        carry: Columns that are carried along.
        possible: Columns that could be.
        schema: Name of the schema beside it.
    """
    parts = [
        f"# yaml-language-server: $schema={schema}",
        "# Look first: dlogp corpus THIS-FILE; then: dlogp score THIS-FILE. All fields: schema.",
        "",
        _dump({"corpus": list(corpus)}),
        "# base, and any number of others, which are compared with it",
        _dump({"policies": dict(policies)}),
        _dump({"output": output, "run_id": run_id}),
    ]
    if carry:
        parts.append(_dump({"carry": list(carry)}))
    elif possible:
        parts.append(f"# carry: [{', '.join(possible)}]   # metadata columns to take along")
    for name, what in _LEFT.items():
        default = json.dumps(ScoreConfig.model_fields[name].default)
        parts.append(f"# {name}: {default}   # {what}")
    return "\n".join(parts) + "\n"


def _dump(fields: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True, width=100).rstrip()
