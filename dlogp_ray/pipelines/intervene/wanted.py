"""The interventions that a job tries: each policy alone, and each rule at what it is tried at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dlogp_ray.config import BASE, InterveneConfig, RuleConfig
from dlogp_ray.decoding.rules import RULES, Intervention, Side
from dlogp_ray.errors import Refused


@dataclass(frozen=True)
class Wanted:
    """An intervention that a job tries.

    Attributes:
        label: Its name in the table.
        rule: As in ``decoding.rules``.
        threshold: τ; None where the rule takes none, or before it is calibrated.
        rate: The share of tokens at which it is to fire, where it is calibrated for one.
        primary: The policy that drafts.
        gamma: Of the extrapolation; None for replacement.
        reached: The share of the calibration's tokens at which it fires with ``threshold``.
    """

    label: str
    rule: str
    threshold: float | None = None
    rate: float | None = None
    primary: Side = "base"
    gamma: float | None = None
    reached: float | None = None

    @property
    def calibrated(self) -> bool:
        """Whether nothing is missing."""
        return self.rate is None or self.threshold is not None

    @property
    def intervention(self) -> Intervention:
        """As the paired loop takes it.

        Raises:
            ValueError: It has no meaning.
        """
        return Intervention(self.rule, self.threshold, self.primary, self.gamma)


def wanted_interventions(config: InterveneConfig) -> Iterator[Wanted]:
    """Each policy by itself, and each rule at each of its thresholds and rates, with each γ.

    Raises:
        Refused: Two have the same label.
    """
    wanted = [Wanted(BASE, "never"), Wanted(config.rl, "never", primary="rl")]
    for rule in config.rules:
        for gamma in rule.gammas or (None,):
            wanted += _of_rule(rule, gamma)
    labels = [variant.label for variant in wanted]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise Refused(f"rules: {', '.join(twice)}: there twice; each intervention is tried once")
    yield from wanted


def _of_rule(rule: RuleConfig, gamma: float | None) -> Iterator[Wanted]:
    ends = "" if rule.primary == "base" else " backward"
    ends += "" if gamma is None else f" gamma={gamma:.15g}"
    variant = Wanted("", rule.rule, primary=rule.primary, gamma=gamma)
    if not rule.thresholds and not rule.rates:
        yield replace(variant, label=f"{rule.rule}{ends}")
    for threshold in rule.thresholds:
        yield replace(variant, label=f"{rule.rule} tau={threshold:.15g}{ends}", threshold=threshold)
    for rate in rule.rates:
        yield replace(variant, label=f"{rule.rule} {rate:.15g}{ends}", rate=rate)


def check_wanted(wanted: Sequence[Wanted]) -> None:
    """Check that each has a meaning.

    Raises:
        Refused: One has none; they are named.
    """
    wrong = []
    for variant in wanted:
        # A threshold that is yet to be calibrated: any that the rule can have.
        tried = (
            variant
            if variant.calibrated
            else replace(variant, threshold=RULES[variant.rule].possible)
        )
        try:
            _ = tried.intervention
        except ValueError as error:
            wrong.append(f"{variant.label}: {error}")
    if wrong:
        raise Refused("rules:\n" + "\n".join(f"  {line}" for line in wrong))
