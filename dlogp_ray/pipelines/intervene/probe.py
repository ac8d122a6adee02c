"""Thresholds for wanted rates, found before the run begins, where the policies are tried first.

A task loads the policies as an actor would, answers some of the problems from streams that the run
does not use, and takes each rule's threshold from what it saw there (METHODS of arXiv 2603.22117).
It also tells how fast an actor answers.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from dlogp_ray.config import BASE
from dlogp_ray.decoding.batch import Prompt
from dlogp_ray.decoding.calibration import rule_statistics, threshold
from dlogp_ray.decoding.rules import RULES, Intervention, Side
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.intervene.actor import AnswerUnit
from dlogp_ray.pipelines.intervene.job import InterveneJob
from dlogp_ray.pipelines.intervene.wanted import Wanted
from dlogp_ray.pipelines.run.placement import Placement
from dlogp_ray.tables.info import InterveneInfo

_TRIED = 16
"""Problems that are answered with each γ beforehand."""
STREAM = "calibration of "
"""In front of a problem's name: streams of their own."""


@dataclass(frozen=True)
class LeftOut:
    """An intervention that no threshold gives.

    Attributes:
        label: Which.
        reason: Why.
    """

    label: str
    reason: str


@dataclass(frozen=True)
class Calibrated:
    """What was found.

    Attributes:
        interventions: With their thresholds.
        left_out: Those that have none.
        dtype: Policy -> dtype of its weights.
        threads: CPU threads of an actor.
        answers_per_s: Of one actor, without interventions.
        tokens: Of the answers that the thresholds come from; by the policy that drafts.
    """

    interventions: tuple[Wanted, ...]
    left_out: tuple[LeftOut, ...]
    dtype: dict[str, str]
    threads: int
    answers_per_s: float
    tokens: dict[str, int]

    def as_info(self) -> dict[str, Any]:
        """What of it ``run.json`` says."""
        return {
            "interventions": [asdict(variant) for variant in self.interventions],
            "left_out": [asdict(left) for left in self.left_out],
            "compared": [variant.label for variant in self.interventions],
            "calibration_tokens": self.tokens,
        }


def calibrate(
    job: InterveneJob, placement: Placement, problems: pa.Table
) -> tuple[Calibrated, AnswerUnit]:
    """Load and try the policies, and find the thresholds that are missing.

    Args:
        job: With thresholds missing, or not.
        placement: Of an actor.
        problems: The run's.

    Raises:
        Refused: A policy can't be loaded, or an extrapolation is not finite.
        ValueError: The policies can't decode together.
    """
    unit = AnswerUnit(job, placement.device, placement.threads, spread=placement.gpus > 1)
    base, rl = unit.policies[BASE], unit.policies[job.config.rl]
    sample = problems.slice(0, job.config.calibration_problems).to_pylist()
    of_label: dict[str, Wanted | LeftOut] = {
        variant.label: variant for variant in job.interventions if variant.calibrated
    }
    speeds, tokens = list[float](), dict[str, int]()
    sides: tuple[Side, ...] = ("base", "rl")
    for primary in sides:
        missing = [variant for variant in job.interventions if variant.primary == primary]
        missing = [variant for variant in missing if not variant.calibrated]
        if speeds and not missing:
            continue
        never = (Intervention("never", primary=primary),)
        wanted = [Prompt(STREAM + p["problem_id"], p["prompt_ids"], never) for p in sample]
        started = time.monotonic()
        answers = list(unit.decoder.decode(wanted))
        speeds.append(len(answers) / (time.monotonic() - started))
        tokens[primary] = sum(len(answer.ids) for answer in answers)
        rules = {
            variant.rule: RULES[variant.rule]
            for variant in missing
            if not RULES[variant.rule].is_rate
        }
        statistics = rule_statistics(base, rl, primary, answers, rules) if rules else {}
        for variant in missing:
            of_label[variant.label] = _with_threshold(variant, statistics)
    in_order = [of_label[variant.label] for variant in job.interventions]
    _try_extrapolation(unit, sample[:_TRIED], in_order)
    calibrated = Calibrated(
        interventions=tuple(variant for variant in in_order if isinstance(variant, Wanted)),
        left_out=tuple(left for left in in_order if isinstance(left, LeftOut)),
        dtype=job.dtype or job.dtypes(placement.device),
        threads=placement.threads,
        answers_per_s=min(speeds),
        tokens=tokens,
    )
    return calibrated, unit


def _try_extrapolation(
    unit: AnswerUnit, problems: Sequence[Mapping[str, Any]], wanted: Sequence[Wanted | LeftOut]
) -> None:
    """Answer some problems with each γ, so that one that is too large is known before the run.

    Raises:
        Refused: A distribution is not finite.
    """
    with_gamma = [
        variant for variant in wanted if isinstance(variant, Wanted) and variant.gamma is not None
    ]
    interventions = tuple(dict.fromkeys(variant.intervention for variant in with_gamma))
    prompts = [Prompt(STREAM + p["problem_id"], p["prompt_ids"], interventions) for p in problems]
    try:
        for _ in unit.decoder.decode(prompts):
            pass
    except ValueError as error:
        raise Refused(f"rules: {str(error).replace(STREAM, '')}") from None


def _with_threshold(variant: Wanted, statistics: Mapping[str, np.ndarray]) -> Wanted | LeftOut:
    assert variant.rate is not None
    if RULES[variant.rule].is_rate:
        return replace(variant, threshold=variant.rate, reached=variant.rate)
    calibration = threshold(RULES[variant.rule], statistics[variant.rule], variant.rate)
    if calibration.value is None:
        return LeftOut(variant.label, calibration.reason or "")
    return replace(variant, threshold=calibration.value, reached=calibration.reached)


def as_calibrated(info: InterveneInfo) -> Calibrated:
    """What a run's record says was found when it began."""
    return Calibrated(
        interventions=interventions_of(info),
        left_out=tuple(LeftOut(left.label, left.reason) for left in info.left_out),
        dtype=info.engine.dtype,
        threads=info.engine.threads,
        answers_per_s=info.engine.answers_per_s,
        tokens=info.calibration_tokens,
    )


def interventions_of(info: InterveneInfo) -> tuple[Wanted, ...]:
    """As a run's record has them."""
    return tuple(Wanted(**variant.model_dump()) for variant in info.interventions)
