"""The whole sweep on the demo pair: six rules at seven rates, and extrapolation; one job.

    python tests/benchmarks/demo_sweep.py --out tests/benchmarks/results/demo-sweep.json

Writes the curve as JSON and, beside it, as pictures.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

import dlogp_ray
from dlogp_ray.analysis.curve import first_to_reach_rl
from dlogp_ray.bench.machine import PACKAGES, hardware, versions
from dlogp_ray.config import InterveneConfig
from dlogp_ray.demo.pair import checkpoint_path, rl_name
from dlogp_ray.demo.task import MAX_RESPONSE_TOKENS, held_out_problems
from dlogp_ray.pipelines.intervene.result import print_intervene

RULES = ("delta_logp", "kl", "js", "entropy_base", "entropy_rl", "random")
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
GAMMAS = (0.05, 0.1, 0.2, 0.5, 1.0)
TAU = -0.7
"""Of the feasibility run: about 3 % of the base's tokens."""


def main() -> None:
    """Run the job, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", type=int, default=3_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rl", default=rl_name(), help="a checkpoint of the demo")
    parser.add_argument("--folder", type=Path, help="where the run goes; a second call resumes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        config = job(folder, options.problems, options.seeds, options.rl)
        started = time.monotonic()
        result = dlogp_ray.intervene(config)
        seconds = time.monotonic() - started
        print_intervene(result, Console(width=150))
        run = dlogp_ray.open_run(result.run)
        document = document_of(result, run.info.as_json(), seconds) | {
            "problems": options.problems,
            "seeds": options.seeds,
            "rl": options.rl,
        }
        if options.out:
            options.out.write_text(json.dumps(document, indent=2) + "\n")
            for name in ("curve", "extrapolation"):
                picture = (Path(result.run) / f"{name}.svg").read_bytes()
                options.out.with_name(f"{options.out.stem}-{name}.svg").write_bytes(picture)


def job(folder: Path, problems: int, seeds: int, rl: str) -> InterveneConfig:
    """The sweep over held-out problems."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"problem_id": p.prompt.removesuffix("="), "prompt": p.prompt, "answer": p.answer}
        for p in held_out_problems(problems, 0)
    ]
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules: list[dict[str, Any]] = [{"rule": rule, "rates": RATES} for rule in RULES]
    rules += [{"rule": "delta_logp", "thresholds": TAU}]
    rules += [{"rule": "delta_logp", "thresholds": TAU, "gammas": GAMMAS}]
    rules += [{"rule": "always", "gammas": GAMMAS}]
    return InterveneConfig.from_mapping(
        {
            "problems": str(path),
            "policies": {"base": str(checkpoint_path("base")), "rl": str(checkpoint_path(rl))},
            "output": str(folder),
            "run_id": "demo-sweep",
            "rules": rules,
            "verifier": "dlogp_ray.demo.task:is_right",
            "seeds": list(range(seeds)),
            "max_tokens": MAX_RESPONSE_TOKENS,
            "unit_problems": 100,
            "rows": 512,
        }
    )


def document_of(result: dlogp_ray.InterveneResult, info: Any, seconds: float) -> dict[str, Any]:
    """What is kept."""
    reached = {
        rule: point and {"label": point.label, "fired": point.trigger_rate}
        for rule, point in first_to_reach_rl(result.curve).items()
    }
    return {
        "seconds": round(seconds, 1),
        "answers": result.rows,
        "tokens": result.tokens,
        "exit_code": result.exit_code,
        "reaches_rl": reached,
        "left_out": result.left_out,
        "calibration_tokens": info["calibration_tokens"],
        "curve": [asdict(point) for point in result.curve],
        "hardware": hardware("cpu"),
        "versions": versions(*PACKAGES),
    }


if __name__ == "__main__":
    main()
