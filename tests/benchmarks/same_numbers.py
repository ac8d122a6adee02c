"""What the jobs make on the demo pair, as hashes: two versions of the program are compared by it.

    python tests/benchmarks/same_numbers.py --out before.json      # in a tree of the one
    python tests/benchmarks/same_numbers.py --out after.json       # in a tree of the other
    diff before.json after.json

Content hashes of every object, of all tables beside them, and what ``--help`` prints; times,
pictures, footers' metadata and versions are left out.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import dlogp_ray
from dlogp_ray.config import InterveneConfig, ReweightConfig, ScoreConfig, SparsityConfig
from dlogp_ray.demo.pair import checkpoint_path, rl_name
from dlogp_ray.demo.task import held_out_problems
from dlogp_ray.tables.content_hash import content_hash

COMMANDS = ("", "score", "intervene", "sparsity", "reweight", "show", "query", "compare", "verify")
SCHEMES: dict[str, list[dict[str, Any]]] = {
    "low_prob": [{"scheme": "low_prob", "alpha": 0.2}],
    "ppl": [{"scheme": "ppl", "alpha": 0.1}, {"scheme": "entropy_top", "rho": 0.3}],
    "delta": [{"scheme": "delta", "beta": 1.0}],
}
_LEFT_OUT = ("created", "versions", "sha256", "engine", "config", "records", "units")
"""Of a record: what has times, versions or addresses in it."""


def main() -> None:
    """Make them, and write their hashes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="of the demo: corpus-2000.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    said: dict[str, Any] = {f"--help {name}": _help(name) for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        said |= _made(Path(folder), options.corpus)
    options.out.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")


def _help(command: str) -> str:
    words = [sys.executable, "-m", "dlogp_ray", *command.split(), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return hashlib.sha256(done.stdout.encode()).hexdigest()


def _made(folder: Path, corpus: Path) -> dict[str, Any]:
    policies = {"base": str(checkpoint_path("base")), "rl": str(checkpoint_path(rl_name()))}
    common = {"policies": policies, "output": str(folder), "run_on": "here", "compile": "off"}
    config = ScoreConfig.from_mapping(
        common
        | {"corpus": str(corpus), "run_id": "scores", "threads_per_actor": 1}
        | {"unit_tokens": 40_000}
    )
    scores = dlogp_ray.score(config, progress=False).run
    runs = {"scores": scores}
    for name, by in (("all", []), ("by-reward", ["reward"])):
        dlogp_ray.sparsity(SparsityConfig(run=scores, name=name, by=by), progress=False)
    for name, schemes in SCHEMES.items():
        fields = {"run": scores, "schemes": schemes, "name": name, "policy": "base"}
        runs[name] = dlogp_ray.reweight(ReweightConfig.from_mapping(fields), progress=False).table
    problems = folder / "problems.jsonl"
    rows = [
        {"problem_id": p.prompt, "prompt": p.prompt, "answer": p.answer}
        for p in held_out_problems(100, seed=0)
    ]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    del common["compile"]
    fields = common | {"problems": str(problems), "run_id": "answers", "max_tokens": 40}
    fields |= {"verifier": "dlogp_ray.demo.task:is_right", "threads_per_actor": 1}
    fields["rules"] = [
        {"rule": "delta_logp", "rates": [0.01, 0.1]},
        {"rule": "kl", "thresholds": 0.5, "gammas": [0.1]},
        {"rule": "random", "rates": 0.2},
    ]
    runs["answers"] = dlogp_ray.intervene(InterveneConfig.from_mapping(fields), progress=False).run
    return {name: _hashes(Path(uri), folder) for name, uri in runs.items()}


def _hashes(run: Path, folder: Path) -> dict[str, str]:
    tables = [path for path in run.rglob("*.parquet") if "weights" not in path.parts[:-2]]
    own = {"units.parquet", "manifest.parquet"}
    found = {
        str(path.relative_to(run)): _hash(path) for path in sorted(tables) if path.name not in own
    }
    record = json.loads((run / "run.json").read_text())
    kept = {key: value for key, value in record.items() if key not in _LEFT_OUT}
    text = json.dumps(kept, sort_keys=True).replace(str(folder), "")
    return found | {"run.json": hashlib.sha256(text.encode()).hexdigest()}


def _hash(path: Path) -> str:
    """Of a table's rows; one with structures as JSON."""
    table = pq.read_table(path)
    if path.name.startswith("part-"):
        return content_hash(table)
    return hashlib.sha256(json.dumps(table.to_pylist(), default=str).encode()).hexdigest()


if __name__ == "__main__":
    main()
