"""The stage of a unit that needs the policies: a plain class, loaded once, called once a unit."""

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dlogp_ray.pipelines.run.held import check_device, hold_policies
from dlogp_ray.pipelines.run.row import Row, from_bytes, guarded, to_bytes
from dlogp_ray.pipelines.score.job import ScoreJob
from dlogp_ray.policies.compiling import given_up
from dlogp_ray.scoring.engine import same_numbers
from dlogp_ray.scoring.scorer import PairScorer
from dlogp_ray.scoring.unit import score_unit
from dlogp_ray.status import Status


class ScoreUnit:
    """Holds all policies; checked corpus rows -> score rows.

    Args:
        job: Which policies, and how.
        device: Where they are held, as torch names it.
        threads: CPU threads of tensor operations.
        spread: Whether each policy is spread over all GPUs that Ray gave to the process.
    """

    def __init__(
        self,
        job: ScoreJob,
        device: str,
        threads: int = 1,
        *,
        spread: bool = False,
    ) -> None:
        """Load the policies.

        Raises:
            Refused: One can't be loaded, or torch has no such device.
        """
        check_device(device)
        engine = job.engine or job.default_engine(device)
        self._held = hold_policies(job, engine.dtype, device, threads, spread=spread)
        self.policies = self._held.policies
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
        self.engine = replace(engine, threads=threads)
        """How it scores; whoever changes that says so here."""

    def adopt(self, job: ScoreJob) -> bool:
        """Go on with ``job``, whose policies these are, if it scores so."""
        wanted = job.engine
        fits = wanted is not None and same_numbers(wanted, self.engine)
        if fits:
            self._job = job
        return fits

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
            self._held.check_files()
            return row | {
                "payload": to_bytes(scores),
                "uncompiled": ", ".join(given_up()) if self.engine.compiled else "",
                "seconds": time.monotonic() - started,
                "counts": _counts(rows, scores),
            }

        return guarded("scoring", row, work)


def _counts(rows: pa.Table, scores: pa.Table) -> dict[str, Any]:
    ok = rows.filter(pc.equal(rows["status"], Status.OK))
    policies = scores["policy"].to_pylist()
    return {
        "tokens": _lengths(ok["prompt_ids"]) + _lengths(ok["response_ids"]),
        "response_tokens": {
            policy: _lengths(scores.filter(pc.equal(scores["policy"], policy))["response_ids"])
            for policy in set(policies)
        },
        "rows": Counter(zip(policies, scores["status"].to_pylist(), strict=True)),
    }


def _lengths(lists: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.list_value_length(lists), min_count=0).as_py())
