"""Accuracy against how often the rules stepped in, of all interventions of a run.

One row an intervention: accuracy with its error clustered by problem, trigger rate (share of tokens
at which the rule fired; arXiv 2603.22117), effective rate (share that came out as another token;
arXiv 2603.22446), and the difference from the RL policy by itself, answer by answer to the same
problems, samples and seeds. Where a problem has several answers, pass@k as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlogp_ray.analysis.estimates import (
    Estimate,
    mean_by_problem,
    paired_difference,
    pass_at_k,
)
from dlogp_ray.tables.info import InterveneInfo
from dlogp_ray.tables.run import Run


@dataclass(frozen=True)
class PassAt:
    """pass@k of one intervention.

    Attributes:
        k: Answers of which one has to be right.
        value: The chance of it, mean over problems.
        se: Its standard error, None with a single problem.
    """

    k: int
    value: float
    se: float | None


@dataclass(frozen=True)
class Point:
    """One intervention.

    Attributes:
        label: Its name.
        rule: What it looks at.
        primary: The policy that drafts.
        gamma: Of the extrapolation; None for replacement.
        threshold: τ.
        rate: At which it was to fire; None where τ was given.
        answers: How many.
        not_graded: Those whose verifier failed; they count in no accuracy.
        accuracy: Share of right answers (Avg@n).
        se: Its standard error, clustered by problem; None with a single problem.
        trigger_rate: Share of tokens at which the rule fired.
        effective_rate: Share of tokens that came out as others.
        length: Mean tokens of an answer.
        against_rl: accuracy − that of the RL policy, paired; None where nothing can be paired.
        against_rl_ci_low: 95 % confidence interval of that.
        against_rl_ci_high: The same.
        against_rl_p: Of no difference, two-sided.
        pass_at: pass@2, 4, 8, … and of all answers to a problem (samples × seeds); ``accuracy``
            is pass@1.
    """

    label: str
    rule: str
    primary: str
    gamma: float | None
    threshold: float | None
    rate: float | None
    answers: int
    not_graded: int
    accuracy: float | None
    se: float | None
    trigger_rate: float
    effective_rate: float
    length: float
    against_rl: float | None
    against_rl_ci_low: float | None
    against_rl_ci_high: float | None
    against_rl_p: float | None
    pass_at: tuple[PassAt, ...] = ()


def curve(run: Run) -> list[Point]:
    """All interventions of a run, in the order of its config."""
    order: list[str] = list(run.info.compared)
    # By problem, seed and sample, so that the answers of all interventions stand side by side.
    rows = run.sql(
        """
        SELECT policy, any_value(rule), any_value("primary"), any_value(gamma),
               any_value(threshold), any_value(rate), count(*), sum(length),
               sum(len(list_filter(fired, lambda x: x))),
               sum(len(list_filter(changed, lambda x: x))),
               list(coalesce(correct::INT::DOUBLE, 'nan'::DOUBLE)
                    ORDER BY group_id, seed, sample),
               list(group_id ORDER BY group_id, seed, sample)
        FROM generations GROUP BY policy
        """
    ).fetchall()
    by_label = {row[0]: row for row in rows}
    rl = by_label.get(_rl_label(run))
    return [_point(by_label[label], rl) for label in order if label in by_label]


def _rl_label(run: Run) -> str:
    """The RL policy by itself."""
    interventions = run.info_of(InterveneInfo).interventions
    return next(
        intervention.label
        for intervention in interventions
        if (intervention.rule, intervention.primary) == ("never", "rl")
    )


def _point(row: tuple[Any, ...], rl: tuple[Any, ...] | None) -> Point:
    label, rule, primary, gamma, threshold, rate, answers, tokens, fired, changed = row[:10]
    values, problems = np.array(row[10], dtype=np.float64), np.array(row[11])
    mean = mean_by_problem(values, problems)
    difference: Estimate | None = None
    if rl is not None and label != rl[0] and rl[11] == row[11]:
        difference = paired_difference(values, np.array(rl[10], dtype=np.float64), problems)
    low, high = (difference and difference.ci) or (None, None)
    return Point(
        label=label,
        rule=rule,
        primary=primary,
        gamma=gamma,
        threshold=threshold,
        rate=rate,
        answers=answers,
        not_graded=int(np.isnan(values).sum()),
        accuracy=None if mean is None else mean.value,
        se=None if mean is None else mean.se,
        trigger_rate=fired / tokens,
        effective_rate=changed / tokens,
        length=tokens / answers,
        against_rl=None if difference is None else difference.value,
        against_rl_ci_low=low,
        against_rl_ci_high=high,
        against_rl_p=None if difference is None else difference.p_value,
        pass_at=tuple(_pass_at(values, problems)),
    )


def _pass_at(values: np.ndarray, problems: np.ndarray) -> Iterator[PassAt]:
    most = int(np.unique(problems, return_counts=True)[1].max())
    for k in sorted({2**i for i in range(1, most.bit_length())} | {most}):
        estimate = pass_at_k(values, problems, k) if k > 1 else None
        if estimate is not None:
            yield PassAt(k, estimate.value, estimate.se)


def first_to_reach_rl(points: Sequence[Point]) -> dict[str, Point | None]:
    """The rarest firing of each replacement rule that has the RL policy's accuracy or more.

    Returns:
        By rule, of forward replacement (the base drafts, no γ); None without one. Empty where the
        RL policy has nothing right, so that nothing is to be reached.
    """
    reached: dict[str, Point | None] = {}
    rl = next((p for p in points if p.rule == "never" and p.primary == "rl"), None)
    if rl is None or not rl.accuracy:
        return reached
    for point in sorted(points, key=lambda point: point.trigger_rate):
        if point.primary != "base" or point.gamma is not None or point.rule in ("always", "never"):
            continue
        reached.setdefault(point.rule, None)
        if reached[point.rule] is None and point.against_rl is not None and point.against_rl >= 0:
            reached[point.rule] = point
    return reached
