"""Rebuild the demo policies from a seed: pre-train, RLVR, measure on held-out problems, keep four.

    python -m dlogp_ray.demo.recipe --out checkpoints

RL saves a candidate every `--rl-save-every` steps. Which three are kept is decided on one set of
held-out problems, and what is recorded is measured on another set:

- the last candidate;
- `rl`, the one before it whose accuracy is nearest to 90 %: improved, but still making mistakes;
- of those that remain, the one whose accuracy is nearest to the middle between the base's and
  `rl`'s.

The last line printed is the record, one JSON document. The exit code is 1 if the accuracies are not
those that the demo is built on (`unmet`): the folders are there all the same, for a look.
"""

import json
import logging
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dlogp_ray.demo.command import log_to_stderr, parser_of
from dlogp_ray.demo.pair import ACCURACIES_FILE, BASE_NAME
from dlogp_ray.demo.task import Problem, held_out_problems

BASE_BAND = (0.30, 0.50)
RL_BAND = (0.85, 0.95)
RL_TARGET = 0.90
LAST_AT_LEAST = 0.97

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Everything that the policies depend on besides the code and the library versions."""

    seed: int = field(default=0, metadata={"help": "of every random draw"})
    base_steps: int = field(default=1500, metadata={"help": "optimiser steps of pre-training"})
    base_batch_size: int = field(default=64, metadata={"help": "solutions a step"})
    base_learning_rate: float = field(default=2e-3, metadata={"help": "peak, AdamW"})
    rl_steps: int = field(default=500, metadata={"help": "optimiser steps of GRPO"})
    rl_save_every: int = field(default=25, metadata={"help": "steps between RL candidates"})
    rl_prompts: int = field(default=16, metadata={"help": "prompts a step"})
    rl_samples: int = field(default=8, metadata={"help": "responses to each prompt"})
    rl_learning_rate: float = field(
        default=3e-4, metadata={"help": "at the start, AdamW, linear to zero"}
    )
    choose_problems: int = field(
        default=1000, metadata={"help": "held-out problems on which checkpoints are chosen"}
    )
    measure_problems: int = field(
        default=4000, metadata={"help": "further held-out problems for the recorded accuracies"}
    )


def build(out: Path, recipe: Recipe) -> dict[str, Any]:
    """Train both policies, keep the base and three RL checkpoints in `out`, return the record.

    Args:
        out: folder to create, or an empty one.
        recipe: what to train and how.

    Returns:
        What `accuracies.json` holds; see `dlogp_ray.demo.pair.accuracies`.

    Raises:
        FileExistsError: `out` holds files already.
        ValueError: the recipe saves fewer than three RL candidates.
    """
    if math.ceil(recipe.rl_steps / recipe.rl_save_every) < 3:
        raise ValueError(
            f"expected at least 3 RL candidates, got rl_steps={recipe.rl_steps} with one saved "
            f"every rl_save_every={recipe.rl_save_every}: train longer or save more often"
        )
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"expected a new or an empty folder for the policies, got {out}")

    import torch
    import transformers
    import trl

    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        candidates = Path(scratch)
        started = time.monotonic()
        step_of = train(candidates, recipe)
        trained = time.monotonic()
        record = {
            **select(candidates, step_of, recipe),
            "recipe": asdict(recipe),
            "training_s": round(trained - started),
            "measuring_s": round(time.monotonic() - trained),
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "trl": trl.__version__,
            },
        }
        for name in record["checkpoints"]:
            shutil.copytree(candidates / name, out / name)
    (out / ACCURACIES_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return record


def train(folder: Path, recipe: Recipe) -> dict[str, int]:
    """Train the base policy, then RL from it, and save every candidate in `folder`.

    Returns:
        The RL step of each candidate, by its name and in the order of training; the base's is 0.
    """
    from dlogp_ray.demo.pretrain import MAX_POSITIONS, pretrain
    from dlogp_ray.demo.rlvr import train_rlvr
    from dlogp_ray.demo.tokenizer import build_tokenizer

    logger.info("pre-training for %d steps", recipe.base_steps)
    tokenizer = build_tokenizer(MAX_POSITIONS)
    model = pretrain(
        tokenizer,
        steps=recipe.base_steps,
        batch_size=recipe.base_batch_size,
        learning_rate=recipe.base_learning_rate,
        seed=recipe.seed,
    )
    model.save_pretrained(folder / BASE_NAME)
    logger.info("GRPO for %d steps", recipe.rl_steps)
    step_of = train_rlvr(
        model,
        tokenizer,
        folder,
        steps=recipe.rl_steps,
        save_every=recipe.rl_save_every,
        prompts_per_step=recipe.rl_prompts,
        samples_per_prompt=recipe.rl_samples,
        learning_rate=recipe.rl_learning_rate,
        seed=recipe.seed,
    )
    step_of = {BASE_NAME: 0, **step_of}
    for name in step_of:
        # Not the one that was used: batches leave their padding in what a tokenizer saves.
        build_tokenizer(MAX_POSITIONS).save_pretrained(folder / name)
    return step_of


def select(folder: Path, step_of: dict[str, int], recipe: Recipe) -> dict[str, Any]:
    """Choose among the candidates in `folder` and measure the chosen ones on further problems.

    Args:
        folder: holds one folder per candidate.
        step_of: the RL step of each candidate, by name and in the order of training.
        recipe: says how many problems to use, and the seed that they and the samples come from.

    Returns:
        `rl`, a name, and `checkpoints`: the chosen names in the order of training, each with its
        `step` and what `measure` returns.
    """
    held_out = held_out_problems(recipe.choose_problems + recipe.measure_problems, recipe.seed)
    to_choose, to_measure = held_out[: recipe.choose_problems], held_out[recipe.choose_problems :]
    logger.info("choosing among %d RL candidates", len(step_of) - 1)
    accuracy = {
        name: measure(folder / name, to_choose, recipe.seed)["accuracy"] for name in step_of
    }
    middle, rl, last = choose(accuracy)
    kept = [name for name in step_of if name in (BASE_NAME, middle, rl, last)]
    logger.info("measuring %s", ", ".join(kept))
    return {
        "rl": rl,
        "checkpoints": {
            name: {"step": step_of[name], **measure(folder / name, to_measure, recipe.seed + 1)}
            for name in kept
        },
    }


def measure(checkpoint: Path, problems: Sequence[Problem], seed: int) -> dict[str, float | int]:
    """Accuracy of one sample a problem at temperature 1 over the full vocabulary.

    Returns:
        `accuracy`, its binomial `standard_error`, `problems` (their number), and
        `mean_response_tokens`, the end-of-sequence token included.
    """
    from dlogp_ray.demo.sampling import sample_corpus

    rows = sample_corpus(checkpoint, problems, samples_per_problem=1, seed=seed)
    n = len(rows)
    accuracy = sum(row["reward"] for row in rows) / n
    return {
        "accuracy": round(accuracy, 4),
        "standard_error": round(math.sqrt(accuracy * (1 - accuracy) / n), 4),
        "problems": n,
        "mean_response_tokens": round(sum(len(row["response_ids"]) for row in rows) / n, 2),
    }


def choose(accuracy: dict[str, float]) -> tuple[str, str, str]:
    """The three RL candidates to keep, by the rule at the top of this file.

    Args:
        accuracy: of the base policy and of at least three candidates, in the order of training.

    Returns:
        The names of the one in the middle, of `rl` and of the last one, all different. Of two that
        are equally near, the earlier one is taken.
    """
    *others, last = [name for name in accuracy if name != BASE_NAME]
    rl = min(others, key=lambda name: abs(accuracy[name] - RL_TARGET))
    others.remove(rl)
    target = (accuracy[BASE_NAME] + accuracy[rl]) / 2
    middle = min(others, key=lambda name: abs(accuracy[name] - target))
    return middle, rl, last


def unmet(record: dict[str, Any]) -> list[str]:
    """What keeps the policies of `record` from being the pair that the demo needs, in words."""
    accuracy = {name: row["accuracy"] for name, row in record["checkpoints"].items()}
    last = max(record["checkpoints"], key=lambda name: record["checkpoints"][name]["step"])
    bands = [
        (BASE_NAME, BASE_BAND),
        (record["rl"], RL_BAND),
        (last, (LAST_AT_LEAST, 1.0)),
    ]
    return [
        f"{name}: expected an accuracy of {low} to {high}, got {accuracy[name]}"
        for name, (low, high) in bands
        if not low <= accuracy[name] <= high
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, build, report; 0 if the accuracies are those of the demo's pair."""
    parser = parser_of("dlogp_ray.demo.recipe", __doc__, Recipe, "new or empty folder to write")
    arguments = vars(parser.parse_args(argv))
    out = arguments.pop("out")
    log_to_stderr()
    record = build(out, Recipe(**arguments))
    problems = unmet(record)
    for problem in problems:
        logger.error("%s", problem)
    sys.stdout.write(json.dumps(record) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
