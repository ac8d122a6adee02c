"""What an intervene job will do, found out before Ray starts: problems, interventions, units."""

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from rich.console import Console

from dlogp_ray import store
from dlogp_ray.amounts import amount
from dlogp_ray.config import InterveneConfig
from dlogp_ray.corpus.files import list_corpus
from dlogp_ray.corpus.problems import PROBLEMS, encode_problems, problem_units, read_problems
from dlogp_ray.corpus.units import Units
from dlogp_ray.decoding.batch import why_not
from dlogp_ray.decoding.grading import ANSWER, VERIFIERS, load_verifier, verifier_hash
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.intervene.actor import AnswerUnit
from dlogp_ray.pipelines.intervene.job import InterveneJob
from dlogp_ray.pipelines.intervene.probe import (
    Calibrated,
    calibrate,
    interventions_of,
)
from dlogp_ray.pipelines.intervene.stages import read_problem_unit, write_answers
from dlogp_ray.pipelines.intervene.wanted import check_wanted, wanted_interventions
from dlogp_ray.pipelines.run.executor import Executor, Stages
from dlogp_ray.pipelines.run.plan import PolicyPlan, Ready
from dlogp_ray.pipelines.run.policies import (
    checked_checkpoints,
    known_files,
    policies_fingerprint,
    with_absolute_addresses,
)
from dlogp_ray.pipelines.run.record import common_info
from dlogp_ray.tables.info import SCHEMA, InterveneInfo, RecordedDecoding
from dlogp_ray.tables.kinds import GENERATIONS
from dlogp_ray.tables.run import Run


@dataclass(frozen=True)
class IntervenePlan(PolicyPlan[InterveneJob]):
    """A checked intervene job; thresholds that are to be calibrated are missing.

    Attributes:
        problems: [problems] as ``corpus.problems`` has them.
        special_tokens: How many have which, as ``tables.special_tokens`` names them.
    """

    problems: pa.Table
    special_tokens: dict[str, int]

    stages: ClassVar[Stages] = Stages(
        read_problem_unit, AnswerUnit, write_answers, counts=GENERATIONS.counts
    )

    @property
    def records(self) -> dict[str, bytes]:
        """The problems."""
        return {PROBLEMS: encode_problems(self.problems, self.job.config.unit_problems)}

    def calibrated(self, executor: Executor, run: Run | None, *, progress: bool) -> Calibrated:
        """Load and try the policies, and find the thresholds that are missing."""
        job = self.job if run is None else self.recorded(run)
        threads = job.threads if job.dtype else None
        placement = executor.place(job.config, threads, progress=progress)
        if progress:
            first = min(job.config.calibration_problems, len(self.problems))
            answering = f"answering {amount(first, 'problem')} for thresholds and speed"
            Console(stderr=True).print(f"loading the policies, and {answering}", highlight=False)
        return executor.attempt(placement, calibrate, job, placement, self.problems)

    def prepare(
        self, executor: Executor, missing: Units, run: Run | None, *, progress: bool
    ) -> Ready:
        """Calibrate."""
        calibrated = self.calibrated(executor, run, progress=progress)
        return Ready(
            calibrated.threads,
            missing.tokens / calibrated.answers_per_s,
            0.0,
            self._info(calibrated),
        )

    def _info(self, calibrated: Calibrated) -> InterveneInfo:
        return InterveneInfo(
            **common_info(self),
            **calibrated.as_info(),
            special_tokens=self.special_tokens,
            engine=RecordedDecoding(
                dtype=calibrated.dtype,
                threads=calibrated.threads,
                answers_per_s=calibrated.answers_per_s,
            ),
        )

    def recorded(self, run: Run) -> InterveneJob:
        """With the thresholds and the engine that the run has."""
        info = run.info_of(InterveneInfo)
        return replace(
            self.job,
            interventions=interventions_of(info),
            dtype=info.engine.dtype,
            threads=info.engine.threads,
            answers_per_s=info.engine.answers_per_s,
        )


def plan_intervene(config: InterveneConfig) -> IntervenePlan:
    """Check problems, policies and interventions; cut the work units.

    Raises:
        Refused: Something is missing, does not fit, or has no meaning.
    """
    config = _with_absolute_verifier(with_absolute_addresses(config, "problems"))
    wanted = tuple(wanted_interventions(config))
    check_wanted(wanted)
    try:
        load_verifier(config.verifier)
    except ValueError as error:
        raise Refused(str(error)) from None
    files = list_corpus(config.problems, what="problems")
    checkpoints = checked_checkpoints(config)
    job = InterveneJob(
        config.run_uri,
        config,
        wanted,
        verifier_sha256=verifier_hash(config.verifier),
        known=known_files(checkpoints),
        conditional=not config.single_writer,
    )
    limits = [c.max_tokens for c in checkpoints.values() if c.max_tokens is not None]
    width = min(checkpoint.vocab_size for checkpoint in checkpoints.values())
    problems, special_tokens = read_problems(
        files,
        config.columns,
        job.text_tokenizer,
        partial(why_not, context=min(limits, default=None), width=width),
        needed=(ANSWER,) if config.verifier in VERIFIERS else (),
    )
    data = encode_problems(problems, config.unit_problems)
    fingerprint = {
        "problems": hashlib.sha256(data).hexdigest(),
        "policies": policies_fingerprint(config, checkpoints),
        **_fingerprint(job),
    }
    store.check_writable(config.run_uri, conditional=not config.single_writer)
    answers = job.answers_per_problem * len(wanted)
    uri = f"{config.run_uri}/{PROBLEMS}"
    units = problem_units(uri, data, len(problems), config.unit_problems, answers)
    return IntervenePlan(job, units, fingerprint, problems, special_tokens)


def _with_absolute_verifier(config: InterveneConfig) -> InterveneConfig:
    """Actors have other working directories."""
    path, colon, function = config.verifier.rpartition(":")
    if not path.endswith(".py"):
        return config
    verifier = f"{Path(path).expanduser().resolve()}{colon}{function}"
    return config.model_copy(update={"verifier": verifier})


def _fingerprint(job: InterveneJob) -> dict[str, Any]:
    """What answers depend on, besides problems and policies."""
    config = job.config
    return {
        SCHEMA: GENERATIONS.schema_version,
        "interventions": [asdict(intervention) for intervention in job.interventions],
        "verifier": {"name": config.verifier, "sha256": job.verifier_sha256},
        "samples": config.samples,
        "seeds": config.seeds,
        "calibration_problems": config.calibration_problems,
        "sampling": asdict(job.sampling),
        "max_tokens": config.max_tokens,
        # generation_config.json names some, and is not among the policies' files.
        "end_tokens": sorted(job.text_tokenizer().ends),
        "stop_strings": config.stop_strings,
        "unit_problems": config.unit_problems,
    }
