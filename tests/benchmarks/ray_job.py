"""What the job costs around the engine: tokens/s through Ray against the bare engine.

    python tests/benchmarks/ray_job.py --base PATH --rl PATH --minutes 10 --out result.json

Both score the same kind of texts with as many one-thread processes as ``--actors`` (as there are
CPUs; with fewer, Ray has a core to spare), compiled: the engine for ``--engine-minutes``, the job
all texts, the engine again. The job's clock runs from the call to the sealed run, with everything
in between, loading and compiling too, which the engine's clock leaves out; beside it stands the
rate from when each actor has committed its first unit.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import dlogp_ray
from dlogp_ray import store
from dlogp_ray.bench.machine import PACKAGES, hardware, versions
from dlogp_ray.bench.texts import make_texts
from dlogp_ray.bench.workers import Workers
from dlogp_ray.config import BenchConfig, ScoreConfig
from dlogp_ray.corpus.units import decode_units
from dlogp_ray.policies.packing import count_tokens
from dlogp_ray.tables.info import ScoreInfo

PROBE_TEXTS = 48


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--rl", required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="of work in the job")
    parser.add_argument("--engine-minutes", type=float, default=3.0, help="before it, and after")
    parser.add_argument("--actors", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--units", type=int, default=60)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-response-tokens", type=int, default=512)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    def config(texts: int, seed: int) -> BenchConfig:
        return BenchConfig(
            base=options.base,
            rl=options.rl,
            processes=options.actors,
            texts=texts,
            prompt_tokens=options.prompt_tokens,
            min_response_tokens=min(32, options.max_response_tokens),
            max_response_tokens=options.max_response_tokens,
            groups=0,
            seed=seed,
        )

    speed, vocabulary = engine_tokens_per_s(config(PROBE_TEXTS, 2))
    average = count_tokens(make_texts(config(PROBE_TEXTS, 2), vocabulary)) / PROBE_TEXTS
    per_minute = 60 * speed / average
    part = int(options.engine_minutes * per_minute)
    first, _ = engine_tokens_per_s(config(part, 0))
    texts = make_texts(config(int(options.minutes * per_minute), 3), vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        job = job_tokens_per_s(options, texts, Path(folder))
    second, _ = engine_tokens_per_s(config(part, 1))
    bare = (first + second) / 2
    result: dict[str, Any] = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "hardware": hardware("cpu"),
        "versions": versions(*PACKAGES, "ray"),
        "tokens": count_tokens(texts),
        "engine_tokens_per_s": [first, second],
        "job": job,
        "job / engine": job["tokens_per_s"] / bare,
        "job once it runs / engine": job["tokens_per_s_once_it_runs"] / bare,
    }
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def engine_tokens_per_s(config: BenchConfig) -> tuple[float, int]:
    """Of the bare engine, all processes together, after compiling; and the vocabulary."""
    workers = Workers(config, "cpu")
    try:
        vocabulary = min(workers.facts[0]["vocabulary"].values())
        workers.run("heads")  # compiles the statistics; the layers are compiled
        seconds = workers.run("pair")
    finally:
        workers.close()
    return count_tokens(make_texts(config, vocabulary)) / seconds, vocabulary


def job_tokens_per_s(options: Any, texts: list[Any], folder: Path) -> dict[str, Any]:
    """Of the job, from its call to its end, and from every actor's first unit to the last."""
    tokens = count_tokens(texts)
    with (folder / "corpus.jsonl").open("w") as corpus:
        for number, text in enumerate(texts):
            ids = {
                "prompt_ids": text.prompt_ids.tolist(),
                "response_ids": text.response_ids.tolist(),
            }
            print(json.dumps({"sample_id": number} | ids), file=corpus)
    config = ScoreConfig.from_mapping(
        {
            "corpus": str(folder / "corpus.jsonl"),
            "policies": {"base": options.base, "rl": options.rl},
            "output": str(folder / "runs"),
            "run_id": "bench",
            "unit_tokens": max(1, tokens // options.units),
            "actors": options.actors,
            "threads_per_actor": 1,
            "run_on": "ray",
        }
    )
    started = time.time()
    done = dlogp_ray.score(config)
    seconds = time.time() - started
    assert done.exit_code == 0, done
    run = dlogp_ray.open_run(done.run)
    actors = options.actors
    ends = sorted(
        (Path(run.path(f"scores/{unit.name}.parquet")).stat().st_mtime, unit.tokens)
        for unit in decode_units(store.read(run.path("units.parquet")))
    )
    later = ends[actors:]
    return {
        "units": done.units,
        "seconds": seconds,
        "until_each_actor_committed_s": ends[actors - 1][0] - started,
        "engine": run.info_of(ScoreInfo).engine.as_json(),
        "tokens_per_s": tokens / seconds,
        "tokens_per_s_once_it_runs": sum(n for _, n in later)
        / (later[-1][0] - ends[actors - 1][0])
        * tokens
        / sum(n for _, n in ends),
    }


if __name__ == "__main__":
    main()
