"""The stage of a unit that needs the policies: its problems, answered with both."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from dlogp_ray.config import BASE
from dlogp_ray.decoding.batch import Answer, Prompt
from dlogp_ray.decoding.grading import grade, load_verifier, verifier_hash
from dlogp_ray.decoding.loop import PairedDecoder
from dlogp_ray.decoding.rules import Intervention
from dlogp_ray.decoding.stopping import Stops
from dlogp_ray.errors import InputChanged
from dlogp_ray.pipelines.intervene.job import InterveneJob
from dlogp_ray.pipelines.intervene.wanted import Wanted
from dlogp_ray.pipelines.run.held import check_device, hold_policies
from dlogp_ray.pipelines.run.row import Row, from_bytes, guarded, to_bytes
from dlogp_ray.policies.tokenizers import load_tokenizer
from dlogp_ray.status import Status
from dlogp_ray.tables.generations import GENERATIONS_SCHEMA

ROWS = {"cpu": 128, "cuda": 256}
"""Texts of a batch: on a CPU a pass costs by the token from there on."""


class AnswerUnit:
    """Holds both policies; problems -> rows of the generations table.

    Args:
        job: Which policies, and how they decode.
        device: Where they are held, as torch names it.
        threads: CPU threads of tensor operations.
        spread: Whether each policy is spread over all GPUs that Ray gave to the process.
    """

    def __init__(
        self,
        job: InterveneJob,
        device: str,
        threads: int = 1,
        *,
        spread: bool = False,
    ) -> None:
        """Load the policies.

        Raises:
            Refused: As ``hold_policies``, or torch has no such device.
            ValueError: A policy's texts can't be cut back.
        """
        check_device(device)
        config = job.config
        dtypes = job.dtype or job.dtypes(device)
        self._held = hold_policies(job, dtypes, device, threads, spread=spread)
        self.policies = self._held.policies
        checkpoint = job.checkpoint(config.tokenizer_policy)
        self._tokenizer = load_tokenizer(checkpoint)
        ends = checkpoint.end_tokens(self._tokenizer)
        self.decoder = PairedDecoder(
            self.policies[BASE],
            self.policies[config.rl],
            sampling=job.sampling,
            stops=Stops(ends, config.stop_strings, self._tokenizer.decode),
            max_tokens=config.max_tokens,
            rows=config.rows or ROWS.get(device, ROWS["cpu"]),
            block=config.block,
        )
        self._verify = load_verifier(config.verifier)
        if verifier_hash(config.verifier) != job.verifier_sha256:
            raise InputChanged(
                f"verifier_changed: {config.verifier} is not the one that was hashed when the job "
                "was planned; put it back and give the same command, or use another run_id"
            )
        self._job = job
        self._made_for = dtypes, threads

    def adopt(self, job: InterveneJob) -> bool:
        """Go on with ``job``, whose policies these are, if it holds them so."""
        fits = self._made_for == (job.dtype, job.threads)
        if fits:
            self._job = job
        return fits

    def __call__(self, row: Row) -> Row:
        """Answer the problems of one unit."""

        def work() -> Row:
            started = time.monotonic()
            rows = list(self._rows(from_bytes(row["payload"])))
            self._held.check_files()
            table = pa.Table.from_pylist(rows, schema=GENERATIONS_SCHEMA).sort_by(
                [("group_id", "ascending"), ("sample_id", "ascending")]
            )
            lengths: Counter[str] = Counter()
            for generation in rows:
                lengths[generation["policy"]] += generation["length"]
            return row | {
                "payload": to_bytes(table),
                "seconds": time.monotonic() - started,
                "counts": {
                    "tokens": lengths.total(),
                    "response_tokens": lengths,
                    "rows": Counter((g["policy"], g["status"]) for g in rows),
                },
            }

        return guarded("decoding", row, work)

    def _rows(self, problems: pa.Table) -> Iterator[Row]:
        # A rate may come to a threshold that is asked for as well.
        wanted: dict[Intervention, list[Wanted]] = {}
        for variant in self._job.interventions:
            wanted.setdefault(variant.intervention, []).append(variant)
        rows = {row["problem_id"]: row for row in problems.to_pylist()}
        parsed = {name: json.loads(row["row"]) for name, row in rows.items()}
        grades: dict[tuple[str, bytes], Mapping[str, Any]] = {}
        for answer in self.decoder.decode(prompts(problems, self._job, tuple(wanted))):
            problem = answer.prompt.problem
            key = problem, answer.ids.tobytes()
            if key not in grades:  # the same answer is as right the second time
                text = self._tokenizer.decode(answer.ids.tolist(), skip_special_tokens=True)
                found = grade(self._verify, parsed[problem], text)
                grades[key] = {"correct": found.correct, "error": found.error}
            for variant in wanted[answer.intervention]:
                yield self._row(answer, variant, grades[key])

    def _row(self, answer: Answer, wanted: Wanted, grades: Mapping[str, Any]) -> Row:
        prompt, config = answer.prompt, self._job.config
        correct = grades["correct"]
        return {
            "sample_id": f"{prompt.problem}/{wanted.label}/{prompt.seed}/{prompt.sample}",
            "group_id": prompt.problem,
            "generator": wanted.label,
            "policy": wanted.label,
            "status": Status.OK if grades["error"] is None else Status.NOT_GRADED,
            "error": grades["error"],
            "rule": wanted.rule,
            "threshold": wanted.threshold,
            "rate": wanted.rate,
            "primary": wanted.primary,
            "gamma": wanted.gamma,
            "seed": prompt.seed,
            "sample": prompt.sample,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "length": len(answer.ids),
            "finish": answer.finish,
            "correct": correct,
            "reward": None if correct is None else float(correct),
            "close_draws": answer.close,
            "prompt_ids": list(prompt.ids),
            "response_ids": answer.ids,
            "fired": answer.fired,
            "changed": answer.changed,
        }


def prompts(
    problems: pa.Table, job: InterveneJob, interventions: tuple[Intervention, ...]
) -> list[Prompt]:
    """All answers that are wanted to some problems."""
    return [
        Prompt(problem["problem_id"], problem["prompt_ids"], interventions, sample, seed)
        for problem in problems.select(["problem_id", "prompt_ids"]).to_pylist()
        for seed in job.config.seeds
        for sample in range(job.config.samples)
    ]
