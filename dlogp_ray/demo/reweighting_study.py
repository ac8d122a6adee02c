"""Does reweighting help on the demo task? RLVR from the demo's base policy, a weight scheme an arm.

    OMP_NUM_THREADS=1 python -m dlogp_ray.demo.reweighting_study --out study

Online arms are GRPO of TRL with weights on the fly; offline arms train on one fixed corpus of the
base policy's rollouts, with weights from a table that `dlogp reweight` made of a scores run. All
arms of a kind differ in nothing but their weights: of one seed they see the same prompts in the
same order, and start from the same policy.

Each (arm, seed) is a file in the folder `runs`; the same command does those that are missing, with
`--workers` processes of one thread each. At the end `result.json` and `result.png` are written:
accuracy on held-out problems along the training, at its end with standard errors over seeds, and
paired comparisons with the unweighted arm of the same kind.
"""

import json
import logging
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dlogp_ray.demo.command import log_to_stderr, parser_of
from dlogp_ray.demo.pair import BASE_NAME, checkpoint_path, rl_name
from dlogp_ray.demo.processes import pool_of
from dlogp_ray.demo.study_result import write_result

logger = logging.getLogger(__name__)

ONLINE: dict[str, tuple[dict[str, Any], ...]] = {
    "baseline": (),
    "low_prob 0.1": ({"scheme": "low_prob", "alpha": 0.1},),
    "low_prob 0.2": ({"scheme": "low_prob", "alpha": 0.2},),
    "low_prob 0.5": ({"scheme": "low_prob", "alpha": 0.5},),
    "dominate 0.2": ({"scheme": "dominate", "alpha": 0.2},),
    "entropy_top 0.2": ({"scheme": "entropy_top", "rho": 0.2},),
}
OFFLINE: dict[str, tuple[dict[str, Any], ...]] = {
    "offline": (),
    "offline low_prob 0.2": ({"scheme": "low_prob", "alpha": 0.2},),
    "offline delta 1": ({"scheme": "delta", "beta": 1.0},),
}
"""Weights are of the demo's RL policy against its base where a scheme compares two."""
BASELINES = {arm: "baseline" for arm in ONLINE} | {arm: "offline" for arm in OFFLINE}


@dataclass(frozen=True)
class Study:
    """Everything that the result depends on besides the code and the library versions."""

    seeds: int = field(default=5, metadata={"help": "seeds of each arm"})
    steps: int = field(default=150, metadata={"help": "optimiser steps of a run"})
    prompts: int = field(default=16, metadata={"help": "prompts a step"})
    samples: int = field(default=8, metadata={"help": "responses to each prompt"})
    learning_rate: float = field(
        default=3e-4, metadata={"help": "at the start, AdamW, linear to zero"}
    )
    measure_every: int = field(default=25, metadata={"help": "steps between two measurements"})
    problems: int = field(default=2000, metadata={"help": "held-out problems of a measurement"})


MEASURE_SEED = 20260
"""Of the held-out problems and of the draws on them: the same in every measurement."""
CORPUS_SEED = 20261
CORPUS = "rollouts.jsonl"
RUN_ID = "scores"


def run_arm(arm: str, seed: int, study: Study, folder: Path) -> dict[str, Any]:
    """Train one arm from one seed, and measure it along the way.

    Args:
        arm: One of ``ONLINE`` or ``OFFLINE``.
        seed: Of prompts, their order and all draws.
        study: The settings.
        folder: Of the study; offline arms find their corpus and tables there (``prepare``).

    Returns:
        `arm`, `seed`, `accuracy` (step -> share of right answers), `seconds`.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    from dlogp_ray.demo.rlvr import grpo_config
    from dlogp_ray.demo.study_measuring import Measure

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    # TRL 1.16 passes transformers an argument that transformers 5 has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning)
    started = time.monotonic()
    base = checkpoint_path(BASE_NAME)
    tokenizer = AutoTokenizer.from_pretrained(base)
    measure = Measure(tokenizer, study.measure_every, study.problems, MEASURE_SEED)
    make = _online if arm in ONLINE else _offline
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make(
            arm,
            seed,
            study,
            folder,
            model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            processing_class=tokenizer,
            callbacks=[measure],
            args=grpo_config(
                Path(scratch),
                steps=study.steps,
                batch_size=study.prompts * study.samples,
                samples_per_prompt=study.samples,
                learning_rate=study.learning_rate,
                seed=seed,
            ),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": measure.accuracy,
        "seconds": round(time.monotonic() - started),
    }


def _online(arm: str, seed: int, study: Study, folder: Path, **common: Any) -> Any:
    from datasets import Dataset
    from trl.trainer.grpo_trainer import GRPOTrainer

    from dlogp_ray.demo.rlvr import verifier_reward
    from dlogp_ray.demo.task import training_problem
    from dlogp_ray.weights.trl.grpo import ReweightedGRPOTrainer

    rng = random.Random(seed)
    prompts = [training_problem(rng).prompt for _ in range(study.steps * study.prompts)]
    common |= {
        "reward_funcs": verifier_reward,
        "train_dataset": Dataset.from_dict({"prompt": prompts}),
    }
    schemes = ONLINE[arm]
    return ReweightedGRPOTrainer(**common, schemes=schemes) if schemes else GRPOTrainer(**common)


def _offline(arm: str, seed: int, study: Study, folder: Path, **common: Any) -> Any:
    from dlogp_ray.weights.table import load_logps, load_weights
    from dlogp_ray.weights.trl.replay import ReplayGRPOTrainer

    run = folder / RUN_ID
    table = run / "weights" / _table(arm)
    return ReplayGRPOTrainer(
        **common,
        rollouts=[json.loads(line) for line in (folder / CORPUS).read_text().splitlines()],
        weights=load_weights(str(table)) if OFFLINE[arm] else None,
        old_logps=load_logps(str(run), BASE_NAME),
    )


def prepare(folder: Path, study: Study) -> None:
    """The offline arms' corpus, its scores and its tables of weights, or what is missing of them.

    As many rollouts of the base policy as an online arm sees, on training problems.
    """
    from dlogp_ray.config import ReweightConfig, ScoreConfig
    from dlogp_ray.demo.sampling import sample_corpus
    from dlogp_ray.demo.task import training_problem
    from dlogp_ray.pipelines.reweight.reweight import reweight
    from dlogp_ray.pipelines.score.score import score

    if not (folder / CORPUS).exists():
        rng = random.Random(CORPUS_SEED)
        chosen = dict.fromkeys(training_problem(rng) for _ in range(study.steps * study.prompts))
        logger.info("sampling %d x %d rollouts", len(chosen), study.samples)
        rows = sample_corpus(
            checkpoint_path(BASE_NAME), list(chosen), study.samples, seed=CORPUS_SEED
        )
        aside = folder / f"{CORPUS}.tmp"
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
        aside.rename(folder / CORPUS)
    run = score(
        ScoreConfig.from_mapping(
            {
                "corpus": str(folder / CORPUS),
                "policies": {
                    BASE_NAME: str(checkpoint_path(BASE_NAME)),
                    "rl": str(checkpoint_path(rl_name())),
                },
                "output": str(folder),
                "run_id": RUN_ID,
            }
        )
    ).run
    for arm, schemes in OFFLINE.items():
        if schemes:
            job = {"run": run, "schemes": schemes, "name": _table(arm), "policy": BASE_NAME}
            reweight(ReweightConfig.from_mapping(job))


def _table(arm: str) -> str:
    return arm.removeprefix("offline ").replace(" ", "-")


def _run_and_keep(arm: str, seed: int, study: Study, folder: Path) -> dict[str, Any]:
    run = run_arm(arm, seed, study, folder)
    path = _path(folder, arm, seed)
    path.with_suffix(".tmp").write_text(json.dumps(run | {"study": asdict(study)}))
    path.with_suffix(".tmp").rename(path)
    return run


def _path(folder: Path, arm: str, seed: int) -> Path:
    return folder / "runs" / f"{arm.replace(' ', '-')}-seed-{seed}.json"


def missing(folder: Path, study: Study, arms: Sequence[str]) -> list[tuple[str, int]]:
    """Runs that are still to be done, seed by seed.

    Raises:
        ValueError: One that is there was made with other settings.
    """
    left = []
    for seed in range(study.seeds):
        for arm in arms:
            path = _path(folder, arm, seed)
            if not path.exists():
                left.append((arm, seed))
                continue
            settings = json.loads(path.read_text())["study"] | {"seeds": study.seeds}
            if settings != asdict(study):
                raise ValueError(
                    f"{path} was made with other settings ({settings}); use another --out"
                )
    return left


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, do what is missing, write the result."""
    parser = parser_of(
        "dlogp_ray.demo.reweighting_study", __doc__, Study, "folder of the study, kept"
    )
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument(
        "--arms", nargs="+", choices=[*ONLINE, *OFFLINE], default=[*ONLINE, *OFFLINE], help="which"
    )
    arguments = vars(parser.parse_args(argv))
    out, workers, arms = (arguments.pop(name) for name in ("out", "workers", "arms"))
    log_to_stderr()
    study = Study(**arguments)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    left = missing(out, study, arms)
    logger.info("%d runs to do", len(left))
    if any(arm in OFFLINE for arm, _ in left):
        prepare(out, study)
    with pool_of(workers) as pool:
        running = [pool.submit(_run_and_keep, arm, seed, study, out) for arm, seed in left]
        for done, future in enumerate(as_completed(running), 1):
            run = future.result()
            final = list(run["accuracy"].values())[-1]
            logger.info(
                "%d/%d: %s, seed %d: %.1f %% after %d s",
                *(done, len(left), run["arm"], run["seed"], 100 * final, run["seconds"]),
            )
    runs = [json.loads(_path(out, a, s).read_text()) for a in arms for s in range(study.seeds)]
    result = write_result(out, asdict(study), runs, BASELINES)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
