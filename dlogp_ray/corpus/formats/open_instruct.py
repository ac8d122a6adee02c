"""open-instruct's ``{run}_rollouts_{shard}.jsonl``: prompt and response as ids.

Layout: open_instruct/rl_utils.py, ``save_rollouts``. Its log-probabilities are processed: below
top_p 1 they are of the distribution that is left, and not comparable with those of a policy.
"""

from dlogp_ray.corpus.formats.format import Format, Record, Row


def rows(record: Record, file: str) -> list[Row]:
    """A row a line."""
    step = record.get("step")
    names = {"sample_id": record.get("sample_idx"), "group_id": record.get("prompt_idx")}
    return [
        {name: f"{step}/{value}" for name, value in names.items() if value is not None}
        | {
            "prompt_ids": record.get("prompt_tokens"),
            "response_ids": record.get("response_tokens"),
            "reward": record.get("reward"),
            "rollout_logp": record.get("logprobs"),
        }
    ]


OPEN_INSTRUCT = Format(
    what="open-instruct's rollouts",
    holds="ids, log-probabilities",
    keys=frozenset({"prompt_tokens", "response_tokens", "prompt_idx", "sample_idx"}),
    rows=rows,
)
