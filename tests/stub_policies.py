"""Policies without torch: every statistic follows from the ids, and rows say what goes wrong.

For what is the same whatever is scored: units, objects, faults, resume, seal. A row whose
``generator`` begins with one of ``TROUBLE`` makes trouble in the process that scores it.
"""

import os
import signal
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlogp_ray.pipelines.run.executor import Executor
from dlogp_ray.pipelines.run.row import Row, from_bytes, guarded, to_bytes
from dlogp_ray.pipelines.score.job import ScoreJob
from dlogp_ray.scoring.engine import Engine
from dlogp_ray.tables.scores import scores_schema
from dlogp_ray.tables.token_hash import token_hash


def _fail(_argument: str) -> None:
    raise ValueError("a row that can't be scored")


TROUBLE: dict[str, Callable[[str], object]] = {
    "kills": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "is stopped": lambda _: os.kill(os.getpid(), signal.SIGTERM),
    "is interrupted": lambda _: os.kill(os.getpid(), signal.SIGINT),
    "fails": _fail,
    "waits for": lambda flag: _wait_for(Path(flag)),
    "sleeps": lambda seconds: time.sleep(float(seconds)),
    "is stopped once": lambda flag: _once(flag, signal.SIGTERM),
    "is interrupted once": lambda flag: _once(flag, signal.SIGINT),
    "runs once": lambda script: _run_once(Path(script)),
    "kills once": lambda flag: _once(flag, signal.SIGKILL),
    "kills twice": lambda flag: (_once(f"{flag}-1", signal.SIGKILL), _once(flag, signal.SIGKILL)),
}


def _run_once(script: Path) -> None:
    """Python code that does something to a run's files meanwhile."""
    mine = script.with_suffix(f".{os.getpid()}")
    try:
        script.rename(mine)
    except FileNotFoundError:  # another process was first
        return
    exec(compile(mine.read_text(), str(script), "exec"), {})


def _wait_for(flag: Path) -> None:
    while not flag.exists():
        time.sleep(0.02)


def _once(flag: str, number: int) -> None:
    path = Path(flag)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), number)
        time.sleep(0.1)  # SIGTERM and SIGINT come to Python's main thread, which this is


class StubUnit:
    """In place of ``ScoreUnit``."""

    def __init__(self, job: ScoreJob, *_where: object, **_spread: object) -> None:
        """Nothing is loaded."""
        self._job = job

    def adopt(self, job: ScoreJob) -> bool:
        """Any job fits."""
        self._job = job
        return True

    def __call__(self, row: Row) -> Row:
        """Make up one unit's scores."""

        def work() -> Row:
            rows = from_bytes(row["payload"])
            for generator in rows["generator"].to_pylist():
                kind, _, argument = (generator or "").partition(": ")
                TROUBLE.get(kind, lambda _: None)(argument)
            scores = stub_scores(rows, self._job)
            return row | {
                "payload": to_bytes(scores),
                "uncompiled": "",
                "seconds": 0.0,
                "counts": {"tokens": len(rows), "response_tokens": {}, "rows": {}},
            }

        return guarded("scoring", row, work)


def stub_scores(rows: pa.Table, job: ScoreJob) -> pa.Table:
    """Rows of the scores table: integers in place of statistics, so that nothing is rounded."""
    schema = scores_schema(job.rules.carry)
    out: list[dict[str, Any]] = []
    for sample in rows.to_pylist():
        ok = sample["status"] == "ok"
        ids = np.asarray(sample["response_ids"] if ok else [], np.int64)
        for policy in job.config.compared:
            found: dict[str, Any] = {"policy": policy, "step": job.config.policies[policy].step}
            if ok:
                found["token_hash"] = token_hash(sample["response_ids"])
                found["prompt_hash"] = token_hash(sample["prompt_ids"])
                found["prompt_len"] = len(sample["prompt_ids"])
            for field in schema:
                if field.name in found or field.name in sample:
                    continue
                if pa.types.is_list(field.type):
                    found[field.name] = _made_up(field, ids)
            found["delta_logp"] = found["logp_rl"] - found["logp_base"]
            out.append({name: sample.get(name) for name in schema.names} | found)
    return pa.Table.from_pylist(out, schema=schema)


def _made_up(field: pa.Field, ids: np.ndarray) -> np.ndarray:
    values = (ids * (zlib.crc32(field.name.encode()) % 97) + np.arange(len(ids))) % 7
    kind = field.type.value_type
    if pa.types.is_boolean(kind):
        return values > 3
    if pa.types.is_integer(kind):
        return values.astype(np.int32)
    return -values.astype(np.float32)


def stub_probe(
    job: ScoreJob, executor: Executor, _tokens: int, _sample: Sequence[Any], **_progress: bool
) -> Any:
    """In place of ``probe``: nothing is loaded or measured."""
    from dlogp_ray.pipelines.score.probe import Probe

    placement = executor.place(job.config)
    engine = job.engine or Engine(dict.fromkeys(job.config.policies, "float32"), 2_048, False)
    engine = replace(engine, threads=placement.threads)
    return Probe(placement, {}, 1e6, engine, None, 0.0)


def install(patch: Callable[[Any, str, object], object] = setattr) -> None:
    """Score jobs of this process score so."""
    from dlogp_ray.pipelines.score import plan

    stages = replace(plan.ScorePlan.stages, actor=StubUnit)
    patch(plan.ScorePlan, "stages", stages)
    patch(plan, "probe", stub_probe)
