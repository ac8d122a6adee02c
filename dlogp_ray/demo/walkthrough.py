"""`dlogp demo`: the main job on the embedded pair, and what its table shows.

Both policies answer held-out additions; both sets of responses are scored by both policies through
the real job; the table then says at which tokens, and in which direction, RL changed the policy,
and a report shows it.
"""

from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from dlogp_ray.analysis.printing import for_people, for_programs
from dlogp_ray.config import BASE, ScoreConfig
from dlogp_ray.demo.corpus import check_problems, make_corpus
from dlogp_ray.demo.looking import print_queries, print_run
from dlogp_ray.demo.pair import BASE_NAME, accuracies, checkpoint_path, rl_name
from dlogp_ray.demo.task import all_held_out
from dlogp_ray.pipelines.run.session import shutdown
from dlogp_ray.pipelines.score.result import print_score
from dlogp_ray.pipelines.score.score import score

SEED = 0
UNIT_TOKENS = 12_000
"""About a second of one actor here; small, so that the demo shows many units."""


def run_demo(output: Path, problems: int) -> int:
    """Sample, score, print.

    Args:
        output: Folder for the corpus and the run; the same one again does what is missing.
        problems: Held-out problems, each answered once by each policy.

    Returns:
        The score job's exit code.

    Raises:
        Refused: There are fewer problems.
    """
    check_problems(problems, len(all_held_out()))
    console = for_people(as_json=False)
    generators = (BASE_NAME, rl_name())
    corpus = output / f"corpus-{problems}.jsonl"
    make_corpus(corpus, generators, partial(_sample, problems=problems), console)
    step = accuracies()["checkpoints"][rl_name()]["step"]
    job = ScoreConfig.from_mapping(
        {
            "corpus": str(corpus),
            "policies": {
                BASE: str(checkpoint_path(BASE_NAME)),
                "rl": {"path": str(checkpoint_path(rl_name())), "step": step},
            },
            "output": str(output),
            "run_id": f"demo-{problems}",
            "carry": {"prompt": "string"},
            "unit_tokens": UNIT_TOKENS,
            "run_on": "ray",  # so small a job would be done here: but this is what a demo is for
        }
    )
    result = score(job)
    print_score(result, console)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path(BASE_NAME))
    print_run(result, tokenizer, generators, console)
    print_queries(result.run, console)
    shutdown()  # what Ray may have to say comes before the last line
    for_programs(result.as_json(), as_json=False)
    return result.exit_code


def _sample(name: str, problems: int) -> list[dict[str, Any]]:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from dlogp_ray.demo.sampling import sample_corpus
    from dlogp_ray.demo.task import held_out_problems

    disable_progress_bar()
    torch.set_num_threads(1)
    chosen = held_out_problems(problems, SEED)
    return sample_corpus(checkpoint_path(name), chosen, samples_per_problem=1, seed=SEED)
