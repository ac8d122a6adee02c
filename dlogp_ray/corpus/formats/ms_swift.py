"""ms-swift's ``completions.jsonl``: a line of lists a logged step; of its Ray backend, a row.

Layout: swift/trainers/rlhf_trainer/grpo_trainer.py, ``jsonl_writer``. Prompts are rendered, with
their special tokens.
"""

from dlogp_ray.corpus.formats.format import Format, Record, Row, lists


def rows(record: Record, file: str) -> list[Row]:
    """A row an element, or the line's."""
    if not isinstance(record.get("completion"), list):
        return [_row(*map(record.get, ("completion", "prompt", "reward")))]
    rewards = record.get("rewards")
    if isinstance(rewards, dict):  # by the reward function's name
        (name, *others) = rewards
        path = "rewards." + name if not others else "reward"
    else:
        path = "rewards" if rewards is not None else "reward"
    return [_row(*one) for one in lists(record, "completion", "prompt", path)]


def _row(*values: object) -> Row:
    return dict(zip(("response", "prompt", "reward"), values, strict=True))


MS_SWIFT = Format(
    what="ms-swift's completions",
    holds="rendered texts",
    keys=frozenset({"prompt", "completion"}),
    rows=rows,
    rendered=True,
)
