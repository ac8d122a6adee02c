"""TRL's GRPO completions: ``{output_dir}/completions/completions_{step}.parquet``.

Layout: trl/trainer/grpo_trainer.py, ``log``: step, prompt, completion, a column for each reward
function, advantage. Which of the rewards is meant is the job's to say: ``columns: {reward: NAME}``.
"""

from dlogp_ray.corpus.formats.format import Format, Record, Row


def rows(record: Record, file: str) -> list[Row]:
    """A row a completion."""
    rewards = [
        value
        for name, value in record.items()
        if name not in _OWN and isinstance(value, float | int) and not isinstance(value, bool)
    ]
    return [
        {
            "prompt": record.get("prompt"),
            "response": record.get("completion"),
            "reward": rewards[0] if len(rewards) == 1 else None,
        }
    ]


_OWN = ("step", "prompt", "completion", "advantage")
TRL = Format(
    what="TRL's GRPO completions",
    holds="texts without special tokens",
    keys=frozenset({"step", "prompt", "completion", "advantage"}),
    rows=rows,
    lossy="TRL decodes prompts and completions without their special tokens "
    "(skip_special_tokens=True), so that the prompt's ids can't be had back; have the trainer log "
    "what can be scored: a reward function gets prompt_ids and completion_ids, and may write them",
)
