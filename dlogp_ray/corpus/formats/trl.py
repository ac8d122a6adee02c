"""TRL's GRPO completions: ``{output_dir}/completions/completions_{step}.parquet``.

Layout: trl/trainer/grpo_trainer.py, ``log``: step, prompt, completion, a column for each reward
function, advantage. Prompts are as the data set has them: conversations are rendered again; of a
text nobody can say whether it was decoded without its special tokens, as older versions did it.
Answers have lost their special tokens. Which of several rewards is meant is the job's to say
(``columns: {reward: NAME}``).
"""

from typing import Any

from dlogp_ray.corpus.formats.format import Format, Record, Row
from dlogp_ray.errors import RowRejected
from dlogp_ray.status import Status


def rows(record: Record, file: str) -> list[Row]:
    """A row a completion."""
    rewards = [
        value
        for name, value in record.items()
        if name not in _OWN and isinstance(value, float | int) and not isinstance(value, bool)
    ]
    prompt = record.get("prompt")
    return [
        {
            ("messages" if isinstance(prompt, list) else "prompt"): prompt,
            "response": _answer(record.get("completion")),
            "reward": rewards[0] if len(rewards) == 1 else None,
        }
    ]


def _answer(completion: Any) -> Any:
    if not isinstance(completion, list):
        return completion
    if len(completion) != 1 or not isinstance(completion[0], dict):
        raise RowRejected(
            Status.MISSING_COLUMN,
            f"completion: {len(completion)} messages of several turns are text without a mask; "
            "expected the assistant's alone",
        )
    return completion[0].get("content")


_OWN = ("step", "prompt", "completion", "advantage")
TRL = Format(
    what="TRL's GRPO completions",
    holds="messages, or texts without special tokens; answers without special tokens",
    keys=frozenset({"step", "prompt", "completion", "advantage"}),
    rows=rows,
    lossy="TRL may have decoded prompts of text without their special tokens, so that their ids "
    "can't be had back; give the trainer prompts as messages, which are logged as they are, or "
    "have a reward function, which gets prompts and completion_ids, write them",
)
