"""SkyRL's evaluations: ``dumped_evals/global_step_N_evals/{source}.jsonl``.

Layout: skyrl_train/utils/trainer_utils.py, ``dump_per_dataset_eval_results``. Prompts are rendered,
and special tokens are kept in both texts. ``aggregated_results.jsonl`` beside them has no texts.
"""

from dlogp_ray.corpus.formats.format import Format, Record, Row


def rows(record: Record, file: str) -> list[Row]:
    """A row a line."""
    score = record.get("score")
    return [
        {
            "prompt": record.get("input_prompt"),
            "response": record.get("output_response"),
            # Of each token, or of the whole.
            "reward": sum(score) if isinstance(score, list) else score,
        }
    ]


SKYRL = Format(
    what="SkyRL's evaluations",
    holds="rendered texts",
    keys=frozenset({"input_prompt", "output_response", "score"}),
    rows=rows,
    rendered=True,
)
