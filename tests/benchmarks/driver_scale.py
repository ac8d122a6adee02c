"""What the driver costs by the unit: a job of very many units, whose scorer returns at once.

    python tests/benchmarks/driver_scale.py --units 1000000 --left 40000 --out result.json

Everything but the forward passes is the job's own: the corpus (one row a unit) is cut, read and
checked, objects are created, and the run is sealed. All but ``--left`` units have an object already
when the job begins: links to a few objects without rows, so that what is resumed is of the size of
the whole while the chain runs for minutes only (``--left 0`` leaves all units to it).
"""

import argparse
import json
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import dlogp_ray
from dlogp_ray.bench.machine import PACKAGES, hardware, versions
from dlogp_ray.config import ScoreConfig
from dlogp_ray.corpus.units import encode_units
from dlogp_ray.demo.pair import checkpoint_path, rl_name
from dlogp_ray.pipelines.run import make_run as making
from dlogp_ray.pipelines.run.executor import Executor
from dlogp_ray.pipelines.run.row import Row, from_bytes, guarded, to_bytes
from dlogp_ray.pipelines.score import plan as planning
from dlogp_ray.pipelines.score.job import ScoreJob
from dlogp_ray.pipelines.score.plan import ScorePlan, plan_score
from dlogp_ray.pipelines.score.probe import Probe
from dlogp_ray.tables.content_hash import content_hash
from dlogp_ray.tables.encoding import Footer, encode_object
from dlogp_ray.tables.object_names import unit_name
from dlogp_ray.tables.run import Run, begin_run
from dlogp_ray.tables.scores import scores_schema

MB = 2**20
ROWS_A_FILE = 10_000


class ScoreNothing:
    """In place of the actor: every statistic is 0."""

    def __init__(self, job: ScoreJob, *_where: Any, **_spread: Any) -> None:
        self._job = job

    def __call__(self, row: Row) -> Row:
        from dlogp_ray.scoring.unit import score_unit

        def work() -> Row:
            config = self._job.config
            scores = score_unit(
                from_bytes(row["payload"]),
                self,  # type: ignore[arg-type]
                base=self._job.base,
                compared=config.compared,
                steps=dict.fromkeys(config.compared),
                carry={},
            )
            return row | {
                "payload": to_bytes(scores),
                "uncompiled": "",
                "seconds": 0.0,
                "counts": {"tokens": 2, "response_tokens": {}, "rows": {}},
            }

        return guarded("scoring", row, work)

    def score(self, sequences: Any) -> Any:
        from dlogp_ray.policies.packing import places
        from dlogp_ray.scoring.scorer import Scored
        from dlogp_ray.tables.scores import BASE_STATISTICS, PAIR_STATISTICS, RL_STATISTICS

        n = sum(len(sequence.response_ids) for sequence in sequences)

        def zeros(names: tuple[str, ...], suffix: str) -> dict[str, Any]:
            kinds = {name: np.bool_ if name == "top1_agree" else np.float32 for name in names}
            kinds |= {name: np.int32 for name in names if name.startswith(("rank", "top1_id"))}
            return {name.removesuffix(suffix): np.zeros(n, kind) for name, kind in kinds.items()}

        columns = {
            "base": zeros(BASE_STATISTICS, "_base"),
            "rl": zeros((*RL_STATISTICS, *PAIR_STATISTICS), "_rl"),
        }
        return Scored(columns if n else {}, places(sequences))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--left", type=int, default=40_000, help="units that the chain does")
    parser.add_argument("--folder", type=Path, help="where corpus and run go for the time")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(Path(folder), options.units, options.left or options.units)
    result |= {"units": options.units, "left": options.left, "hardware": hardware("cpu")}
    result |= {"versions": versions(*PACKAGES)}
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: Path, count: int, left: int) -> dict[str, Any]:
    """A run of ``count`` units, of which the last ``left`` are missing, and it once more."""
    corpus = folder / "corpus"
    write_corpus(corpus, count)
    config = ScoreConfig(
        corpus=(str(corpus),),
        policies={"base": str(checkpoint_path("base")), "rl": str(checkpoint_path(rl_name()))},
        output=str(folder / "runs"),
        run_id="scale",
        unit_tokens=2,  # one row
        threads_per_actor=1,
        run_on="ray",
    )
    watched = Watched()
    with watched.phase("planning"):
        plan = plan_score(config)
    assert len(plan.units) == count, len(plan.units)
    engine = plan.job.default_engine("cpu")

    def no_probe(job: ScoreJob, executor: Executor, *_: Any, **__: Any) -> Probe:
        return Probe(executor.place(config), {}, 1.0, engine, None, 0.0)

    planning.probe = no_probe
    ScorePlan.stages = replace(ScorePlan.stages, actor=ScoreNothing)
    with watched.phase("beginning"):
        info = plan.info(Probe(None, {}, 1.0, engine, None, 0.0))  # type: ignore[arg-type]
        run = begin_run(plan.job.run_uri, info, {"units.parquet": encode_units(plan.units)})
    put_there(run, count - left)
    del plan
    do_units, seal = making.do_units, making.seal

    def watched_units(*args: Any, **kwargs: Any) -> Any:
        watched.end()  # what came before is the resume
        with watched.phase("chain"):
            return do_units(*args, **kwargs)

    def watched_seal(*args: Any, **kwargs: Any) -> Any:
        with watched.phase("sealing"):
            return seal(*args, **kwargs)

    making.do_units, making.seal = watched_units, watched_seal
    watched.begin("resuming")
    done = dlogp_ray.score(config)
    assert done.sealed, list(done.units_failed.items())[:3]
    assert not done.units_failed
    assert done.units_created == left, (done.units_created, left)
    with watched.phase("a sealed run once more"):
        again = dlogp_ray.score(config)
    assert again.units_created == 0
    return {"phases": watched.phases, "units_per_s": round(left / watched.phases["chain"]["s"], 1)}


def write_corpus(folder: Path, rows: int) -> None:
    """Rows of two tokens, 10,000 a file."""
    folder.mkdir()
    for start in range(0, rows, ROWS_A_FILE):
        numbers = range(start, min(start + ROWS_A_FILE, rows))
        table = pa.table(
            {
                "sample_id": [f"s{number}" for number in numbers],
                "prompt_ids": [[2]] * len(numbers),
                "response_ids": [[3]] * len(numbers),
            }
        )
        pq.write_table(table, folder / f"{start:08d}.parquet", row_group_size=1_000)


def put_there(run: Run, count: int) -> None:
    """Objects of so many units, without rows."""
    empty, stands_for = scores_schema({}).empty_table(), 99_999_999
    footer = Footer(
        unit=stands_for,
        rows_in=0,
        tokens=0,
        status={},
        summary={},
        content_hash=content_hash(empty),
        schema_version=run.kind.schema_version,
        origin=run.origin,
    )
    data = encode_object(empty, footer)
    folder = Path(run.path("scores"))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        own = data.replace(str(stands_for).encode(), f"{number:>8}".encode())
        (folder / f"{unit_name(number)}.parquet").write_bytes(own)


class Watched:
    """Seconds and this process's memory by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}
        self._process = psutil.Process()
        self._name, self._started, self._before, self._peak = "", 0.0, 0, 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, self._process.memory_info().rss)
            time.sleep(0.2)

    def begin(self, name: str) -> None:
        self._name, self._started = name, time.monotonic()
        self._before = self._peak = self._process.memory_info().rss

    def end(self) -> None:
        if self._name:
            after = self._process.memory_info().rss
            self.phases[self._name] = {
                "s": round(time.monotonic() - self._started, 1),
                "rss_before_mb": self._before // MB,
                "rss_peak_mb": max(self._peak, after) // MB,
                "rss_after_mb": after // MB,
            }
            print(self._name, self.phases[self._name], flush=True)
        self._name = ""

    def phase(self, name: str) -> "Watched":
        self.begin(name)
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_error: object) -> None:
        self.end()


if __name__ == "__main__":
    main()
