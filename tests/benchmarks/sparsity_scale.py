"""The sparsity job over very many tokens: time, memory, how evenly the work spreads; and queries.

    python tests/benchmarks/sparsity_scale.py --tokens 100000000 --out result.json

The scores table is made up: a few objects of ``--unit-tokens`` each, and links to them.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from score_tables import made_up_run, score_rows

from dlogp_ray.bench.machine import PACKAGES, hardware, versions
from dlogp_ray.config import SparsityConfig
from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.sparsity.sparsity import sparsity
from dlogp_ray.tables.run import open_run

DISTINCT, LENGTH = 6, 1_000
MB = 2**20
QUERIES = (
    "SELECT generator, sum(list_sum(js)) / sum(len(js)) FROM scores GROUP BY generator",
    "SELECT generator, avg(js) FROM tokens GROUP BY generator",
    "SELECT generator, avg(delta_logp), count(*) FILTER (js > 0.1 AND entropy_base < 0.5)"
    " FROM tokens WHERE response_mask GROUP BY generator",
)
ROUNDS = 3


def main() -> None:
    """Make the run, analyse it, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--unit-tokens", type=int, default=2_000_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        units = options.tokens // options.unit_tokens
        uri = make_run(Path(folder), units, options.unit_tokens)
        size = sum(path.stat().st_size for path in Path(uri, "scores").iterdir())
        result = measure(uri)
        result["queries"] = {query: query_seconds(uri, query) for query in QUERIES}
    result |= {"units": units, "bytes": size, "hardware": hardware("cpu")}
    result["versions"] = versions(*PACKAGES)
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def make_run(folder: Path, units: int, unit_tokens: int) -> str:
    """A run whose objects are links to a few."""
    some = min(units, DISTINCT)
    tables = (
        score_rows(
            unit_tokens // LENGTH,
            seed=index,
            length=LENGTH,
            generator=("base", "rl")[index % 2],
            masked=0.0,
        )
        for index in range(some)
    )
    run = made_up_run(str(folder / "run"), tables, planned=units)
    for index in range(some, units):
        os.link(run.object_uri(f"part-{index % some:08d}"), run.object_uri(f"part-{index:08d}"))
    return run.uri


def measure(uri: str) -> dict[str, Any]:
    """One call of the job, in a Ray session whose own start is not counted."""
    session.join()
    before = memory()
    peak = dict.fromkeys(before, 0.0)
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(2):
            for name, value in memory().items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, cpu = time.monotonic(), psutil.Process().cpu_times()
    found = sparsity(SparsityConfig(run=uri, run_on="ray", partial=True), progress=False)
    seconds = time.monotonic() - started
    after = psutil.Process().cpu_times()
    by_worker = sorted(worker_seconds())
    stop.set()
    watcher.join()
    nodes = ray.cluster_resources()
    return {
        "tokens": found.tokens,
        "seconds": round(seconds, 1),
        "tokens_per_s": round(found.tokens / seconds),
        "driver_cpu_s": round(after.user + after.system - cpu.user - cpu.system, 1),
        "worker_cpu_s": [round(one, 1) for one in by_worker],
        "cpus": nodes["CPU"],
        "before_mb": {name: round(value) for name, value in before.items()},
        "peak_mb": {name: round(value) for name, value in peak.items()},
    }


def query_seconds(uri: str, query: str) -> list[float]:
    """Of each round, from opening the run to the rows."""
    found = []
    for _ in range(ROUNDS):
        started = time.monotonic()
        open_run(uri).sql(query).fetchall()
        found.append(round(time.monotonic() - started, 2))
    return found


def workers() -> list[psutil.Process]:
    """Processes in which Ray runs tasks."""
    return [
        one
        for one in psutil.Process().children(recursive=True)
        if one.is_running() and one.name().startswith("ray::")
    ]


def memory() -> dict[str, float]:
    """MB of memory of their own: the driver, and all workers together."""
    own = psutil.Process().memory_full_info().uss / MB
    total = 0.0
    for one in workers():
        try:
            total += one.memory_full_info().uss / MB
        except psutil.Error:
            continue  # it has ended
    return {"driver": own, "workers": total}


def worker_seconds() -> list[float]:
    """CPU seconds of each worker that has worked: idle ones take 1 % of a core."""
    times = [one.cpu_times() for one in workers()]
    seconds = [one.user + one.system for one in times]
    return [one for one in seconds if one > max(seconds) / 10]


if __name__ == "__main__":
    main()
