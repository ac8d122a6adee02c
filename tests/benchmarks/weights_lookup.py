"""Looking up weights of a million samples: time of a batch of 512, and memory of the process.

    PYTHONPATH=tests python tests/benchmarks/weights_lookup.py --out lookup.json

The table is made up: response lengths are drawn around a mean, tokens and weights at random.
Memory is what the process holds of its own (RssAnon), after imports and after all lookups: mapped
files are the page cache's, which all processes share and which gives way. They are in it, as in a
training run that has been going on for a while.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dlogp_ray.bench.machine import hardware

ROWS_A_UNIT = 50_000


def make_table(folder: Path, samples: int, tokens: int) -> str:
    """A sealed table of random rows."""
    import pyarrow as pa

    from dlogp_ray.tables.encoding import encode_table
    from dlogp_ray.tables.info import ReweightInfo
    from dlogp_ray.tables.run import begin_run
    from dlogp_ray.tables.sealing import seal
    from dlogp_ray.tables.token_hash import token_hash
    from dlogp_ray.tables.weights import WEIGHTS_SCHEMA, WeightsSummary

    units = -(-samples // ROWS_A_UNIT)
    info = ReweightInfo.model_validate(
        {
            "job": "reweight",
            "created": "",
            "config": {},
            "fingerprint": {"scores": "none", "schemes": []},
            "units": {"count": units},
            "versions": {},
            "policy": "base",
            "compared": ["base"],
            "run": "none",
            "whole": {},
        }
    )
    run = begin_run(str(folder / "w"), info, {"units.parquet": encode_table(pa.table({"i": [0]}))})
    for index in range(units):
        rng = np.random.default_rng(index)
        count = min(ROWS_A_UNIT, samples - index * ROWS_A_UNIT)
        lengths = rng.integers(tokens // 2, tokens * 3 // 2, count)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = rng.integers(0, 50_000, offsets[-1], dtype=np.int32)
        weights = (1 + 0.2 * rng.random(offsets[-1])).astype(np.float32)
        known = {
            "sample_id": [f"sample-{index * ROWS_A_UNIT + row}" for row in range(count)],
            "policy": ["base"] * count,
            "status": ["ok"] * count,
            "token_hash": [token_hash(ids[a:b]) for a, b in itertools.pairwise(offsets)],
            "prompt_hash": [token_hash([1])] * count,
            "response_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)),
            "loss_weights": pa.ListArray.from_arrays(pa.array(offsets), pa.array(weights)),
        }
        columns = {f.name: known.get(f.name, pa.nulls(count, f.type)) for f in WEIGHTS_SCHEMA}
        rows = pa.table(columns).cast(WEIGHTS_SCHEMA)
        run.folder.commit(index, rows, rows_in=count, summary=WeightsSummary(status={"ok": count}))
    return seal(run).uri


def private_mb() -> float:
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("RssAnon:") + 1]) / 1024


def look_up(uri: str, cache: str, samples: int, rounds: int) -> dict[str, object]:
    """In a process of its own."""
    import torch

    from dlogp_ray.weights.table import load_weights

    torch.set_num_threads(1)
    imported = private_mb()
    started = time.perf_counter()
    weights = load_weights(uri, cache=cache)
    opened_s = time.perf_counter() - started
    opened = private_mb()
    opened_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    rng = np.random.default_rng(99)
    took: dict[str, list[float]] = {"arrays": [], "lists": []}
    tokens = 0
    for _ in range(rounds):
        names = [f"sample-{number}" for number in rng.integers(0, samples, 512)]
        arrays = [np.array(weights[name][0]) for name in names]
        tokens += sum(map(len, arrays))
        given = {"arrays": arrays, "lists": [ids.tolist() for ids in arrays]}
        length = max(map(len, arrays))
        for kind, responses in given.items():
            started = time.perf_counter()
            found = weights.batch(names, responses, length)
            took[kind].append(1000 * (time.perf_counter() - started))
            assert found.shape == (512, length)
    return {
        "samples": len(weights),
        "tokens_a_batch": tokens / rounds,
        "open_s": opened_s,
        "batch_ms": {
            kind: {"median": float(np.median(ms)), "p99": float(np.quantile(ms, 0.99))}
            for kind, ms in took.items()
        },
        "private_mb": {
            "after imports": imported,
            "opened": opened,
            "after lookups": private_mb(),
        },
        "max_rss_mb_when_opened": opened_peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=100, help="mean response length")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--look-up", nargs=2, metavar=("TABLE", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.look_up:
        print(json.dumps(look_up(*arguments.look_up, arguments.samples, arguments.rounds)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        uri = make_table(Path(scratch), arguments.samples, arguments.tokens)
        found = {}
        for name in ("first open, which writes the arrays", "second open"):
            command = [sys.executable, __file__, "--look-up", uri, f"{scratch}/cache"]
            command += ["--samples", str(arguments.samples), "--rounds", str(arguments.rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = json.loads(done.stdout)
        size = sum(f.stat().st_size for f in Path(scratch, "cache").rglob("*") if f.is_file())
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware("cpu"),
        "mean_response_tokens": arguments.tokens,
        "cache_mb": size / 2**20,
        **found,
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
