"""Thresholds at which rules fire equally often, from a sample and before any accuracy is seen.

The primary policy answers problems by itself; each rule's statistic is taken at every token of
these answers, and its threshold is the quantile that leaves the wanted share firing (METHODS of
arXiv 2603.22117: rules are compared at the same rates). Where rules then step in, the texts become
others, and with them the rate: it is measured again.

Shapes: n tokens of the calibration's answers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dlogp_ray.decoding.batch import Answer
from dlogp_ray.decoding.distribution import Distribution
from dlogp_ray.decoding.rules import Rule, Seen, Side
from dlogp_ray.policies.layout import Layout
from dlogp_ray.policies.packing import TOKEN_BUDGET, TokenSequence, plan_whole
from dlogp_ray.policies.policy import Policy


@dataclass(frozen=True)
class Threshold:
    """What a rule needs to fire at a rate.

    Attributes:
        rate: As wanted.
        value: τ, None where no threshold gives that rate.
        reached: The share of the calibration's tokens at which the rule fires with it.
        reason: Why there is none.
    """

    rate: float
    value: float | None
    reached: float
    reason: str | None = None


@torch.inference_mode()
def rule_statistics(
    base: Policy, rl: Policy, primary: Side, answers: Sequence[Answer], rules: Mapping[str, Rule]
) -> dict[str, np.ndarray]:
    """Each rule's statistic at every token of some answers.

    Args:
        base: The base policy.
        rl: The RL policy.
        primary: The policy that wrote the answers.
        answers: Without interventions.
        rules: Those whose statistics are wanted; none that leaves it to chance.

    Returns:
        By rule, [n] float32.
    """
    values: dict[str, list[np.ndarray]] = {name: [] for name in rules}
    width = min(base.lm_head.width, rl.lm_head.width)
    texts = [TokenSequence(np.asarray(answer.prompt.ids), answer.ids) for answer in answers]
    for packed in plan_whole(texts, TOKEN_BUDGET.get(base.device.type, TOKEN_BUDGET["cpu"])):
        ids = torch.from_numpy(packed.ids.astype(np.int64)).to(base.device)
        predicting = torch.from_numpy(packed.rows).to(base.device)
        of_base, of_rl = (
            Distribution(
                policy.lm_head.logits(
                    policy.hidden_packed(ids, Layout(packed.segments))[predicting],
                    compiled=policy.compiled,
                )[:, :width]
            )
            for policy in (base, rl)
        )
        drafts = ids[predicting + 1][:, None]
        seen = Seen(of_base, of_rl, primary, drafts, of_base.logits[:, :1] * 0)
        for name, rule in rules.items():
            values[name].append(rule.statistic(seen)[:, 0].float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in values.items()}


def threshold(rule: Rule, values: np.ndarray, rate: float) -> Threshold:
    """The threshold at which ``rule`` fires at the share ``rate`` of ``values``.

    Half way between the last value that is to fire and the next; of equal values none fires that
    would make it more than ``rate``.

    Args:
        rule: Which.
        values: [n] its statistic.
        rate: In (0, 1).
    """
    sign = 1.0 if rule.fires == "above" else -1.0
    ordered = -np.sort(-sign * values.astype(np.float64))  # those that fire first
    wanted = round(rate * len(ordered))
    if not 0 < wanted < len(ordered):
        reason = (
            f"a rate of {rate:g} is less than one of {len(ordered):,} tokens; give a higher one, "
            "or more calibration_problems"
        )
        return Threshold(rate, None, 0.0, reason)
    last = ordered[wanted - 1]
    if last == ordered[wanted]:
        wanted = int(np.searchsorted(-ordered, -last, side="left"))
        if wanted == 0:
            share = float(np.mean(ordered == last))
            reason = (
                f"{share:.1%} of the tokens have the same value, the first to fire; give a rate "
                f"above {share:.3g}, or a threshold"
            )
            return Threshold(rate, None, 0.0, reason)
        last = ordered[wanted - 1]
    value = sign * (last + ordered[wanted]) / 2
    low, high = rule.thresholds or (-math.inf, math.inf)
    if not low < value < high:
        allowed = float(np.mean((values > low) & (values < high)))
        reason = (
            f"it would need a threshold of {value:g}, outside of ({low:g}, {high:g}): "
            f"only {allowed:.1%} of the tokens lie inside; give a lower rate, or a threshold"
        )
        return Threshold(rate, None, 0.0, reason)
    return Threshold(rate, value, wanted / len(ordered))
