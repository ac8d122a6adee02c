"""verl's rollout and validation dumps: ``{rollout_data_dir}/{step}.jsonl``.

Layout: verl/trainer/ppo/ray_trainer.py, ``_dump_generations``; with ``uid`` since
verl/trainer/ppo/v1/trainer_base.py, ``{prompt}_{session}_{i}``.
"""

from dlogp_ray.corpus.formats.format import Format, Record, Row


def rows(record: Record, file: str) -> list[Row]:
    """A row a line."""
    row = {name: record.get(theirs) for name, theirs in _COLUMNS.items()}
    uid = record.get("uid")
    if isinstance(uid, str):
        row |= {"sample_id": uid, "group_id": "_".join(uid.split("_")[:-2]) or uid}
    return [row]


_COLUMNS = {"prompt": "input", "response": "output", "reward": "score"}
VERL = Format(
    what="verl's rollout dump",
    holds="texts without special tokens",
    keys=frozenset({"input", "output", "score", "step"}),
    rows=rows,
    lossy="verl decodes prompts and answers without their special tokens, so that the prompt's ids "
    "can't be had back, and no setting of it keeps them: decode with skip_special_tokens=False in "
    "its _log_rollout_data, and say accept_lossy: true, prompt_format: rendered",
)
