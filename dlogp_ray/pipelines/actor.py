"""The stage of a unit that needs the policies: a plain class, loaded once, called once a unit."""

import time
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dlogp_ray.pipelines.holding import check_device, hold_policies
from dlogp_ray.pipelines.metrics import ActorMetrics
from dlogp_ray.pipelines.planning import ScoreJob
from dlogp_ray.pipelines.stages import Row, from_bytes, guarded, to_bytes
from dlogp_ray.policies.compiling import given_up
from dlogp_ray.scoring.scorer import PairScorer
from dlogp_ray.scoring.unit import score_unit


class ScoreUnit:
    """Holds all policies; checked corpus rows -> score rows.

    Args:
        job: Which policies, and how.
        device: Where they are held, as torch names it.
        threads: CPU threads of tensor operations.
        spread: Whether each policy is spread over all GPUs that Ray gave to the process.
        watch: A ``LoadingWatch``, where Ray may restart the process.
    """

    def __init__(
        self,
        job: ScoreJob,
        device: str,
        threads: int = 1,
        watch: Any | None = None,
        *,
        spread: bool = False,
    ) -> None:
        """Load the policies.

        Raises:
            Refused: One can't be loaded, torch has no such device, or the process has died at it
                before, as often as it may.
        """
        check_device(device)
        engine = job.engine or job.default_engine(device)
        self.policies = hold_policies(job, engine.dtype, device, threads, watch, spread=spread)
        self.scorer = PairScorer(
            self.policies,
            base=job.base,
            token_budget=engine.token_budget,
            temperature=job.config.temperature,
            sampled_only=job.config.statistics == "sampled",
        )
        if engine.compiled:
            self.scorer.compile()
        self._job = job
        self._metrics = ActorMetrics(job.config.run_id)

    @property
    def policies_bytes(self) -> int:
        """Memory of all weights; what policies share counts once."""
        weights = (w for policy in self.policies.values() for _name, w in policy.parameters())
        return sum({w.data_ptr(): w.numel() * w.element_size() for w in weights}.values())

    def __call__(self, row: Row) -> Row:
        """Score one unit."""

        def work() -> Row:
            started = time.monotonic()
            config = self._job.config
            rows = from_bytes(row["payload"])
            scores = score_unit(
                rows,
                self.scorer,
                base=self._job.base,
                compared=config.compared,
                steps={name: config.policies[name].step for name in config.compared},
                carry=self._job.rules.carry,
            )
            seconds = time.monotonic() - started
            self._count(rows, scores, seconds)
            uncompiled = ", ".join(given_up())
            return row | {
                "payload": to_bytes(scores),
                "uncompiled": uncompiled,
                "seconds": seconds,
            }

        done = guarded("scoring", row, work)
        if done["error"]:
            self._metrics.failed()
        return done

    def _count(self, rows: pa.Table, scores: pa.Table, seconds: float) -> None:
        ok = rows.filter(pc.equal(rows["status"], "ok"))
        tokens = _lengths(ok["prompt_ids"]) + _lengths(ok["response_ids"])
        policies = scores["policy"].to_pylist()
        self._metrics.scored(
            tokens=tokens,
            response_tokens={
                policy: _lengths(scores.filter(pc.equal(scores["policy"], policy))["response_ids"])
                for policy in set(policies)
            },
            rows=Counter(zip(policies, scores["status"].to_pylist(), strict=True)),
            seconds=seconds,
        )


def _lengths(lists: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.list_value_length(lists), min_count=0).as_py())
