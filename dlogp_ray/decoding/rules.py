"""Rules: where one policy steps in for the other, and what the token is then drawn from.

The primary policy drafts a token; a rule looks at both distributions and the draft, and fires or
not; where it fires the token is drawn again, from the other policy (replacement) or from an
extrapolation beyond the RL policy. Sources: arXiv 2603.22117 (Δlog p, KL, entropy, random;
extrapolation), arXiv 2603.22446 (JS, backward).

Shapes: n positions, m candidate drafts of each (one, or all v ids for an exact distribution).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlogp_ray.decoding.distribution import Distribution

Side = Literal["base", "rl"]


@dataclass(frozen=True)
class Seen:
    """What a rule looks at.

    Attributes:
        base: The base policy's distributions.
        rl: The RL policy's.
        primary: Which of them drafts.
        drafts: [n, m] ids.
        gate: [n, 1] numbers in [0, 1), private to each position, for rules that leave it to chance.
    """

    base: Distribution
    rl: Distribution
    primary: Side
    drafts: Int[Tensor, "n m"]
    gate: Float[Tensor, "n 1"]

    @property
    def intervening_minus_primary(self) -> Float[Tensor, "n m"]:
        """log π_int(y) − log π_prim(y) of the drafts: Δlog p, where the base policy drafts."""
        delta = self.rl.logp_of(self.drafts) - self.base.logp_of(self.drafts)
        return delta if self.primary == "base" else -delta


Statistic = Callable[[Seen], Float[Tensor, "n #m"]]


@dataclass(frozen=True)
class Rule:
    """A statistic of each position, and the side of its threshold on which the rule fires.

    Attributes:
        statistic: [n, m], or [n, 1] where the draft does not matter.
        fires: At and above the threshold, or at and below it.
        thresholds: The open interval that a threshold must lie in; None where there is none.
        sees_draft: Whether the statistic depends on the draft.
        is_rate: Whether the threshold is the share of places at which it fires.
    """

    statistic: Statistic
    fires: Literal["above", "below"] = "above"
    thresholds: tuple[float, float] | None = (-math.inf, math.inf)
    sees_draft: bool = False
    is_rate: bool = False

    @property
    def possible(self) -> float | None:
        """A threshold that it can have; None where it takes none."""
        if self.thresholds is None:
            return None
        low, high = self.thresholds
        if math.isfinite(low):
            return (low + min(high, low + 2.0)) / 2
        return high - 1.0 if math.isfinite(high) else 0.0

    def beyond(self, value: Float[Tensor, "n #m"], threshold: float) -> Bool[Tensor, "n #m"]:
        """Where the rule fires, of its statistic's values."""
        return value >= threshold if self.fires == "above" else value <= threshold

    def check(self, name: str, threshold: float) -> None:
        """Refuse a threshold that the statistic can't have, or that makes it fire everywhere.

        Raises:
            ValueError: With the interval that was expected, or there is none to be given.
        """
        if self.thresholds is None:
            raise ValueError(f"rule {name} takes no threshold, got {threshold:g}")
        low, high = self.thresholds
        if not low < threshold < high:
            raise ValueError(
                f"rule {name}: expected a threshold between {low:g} and {high:g}, got {threshold:g}"
            )


def _column(value: Tensor) -> Tensor:
    return value[:, None]


POSITIVE = (0.0, math.inf)

RULES: dict[str, Rule] = {
    "delta_logp": Rule(
        lambda seen: seen.intervening_minus_primary,
        fires="below",
        thresholds=(-math.inf, 0.0),
        sees_draft=True,
    ),
    "kl": Rule(lambda seen: _column(seen.rl.kl(seen.base)), thresholds=POSITIVE),
    "kl_base_rl": Rule(lambda seen: _column(seen.base.kl(seen.rl)), thresholds=POSITIVE),
    "js": Rule(lambda seen: _column(seen.base.js(seen.rl)), thresholds=(0.0, math.log(2))),
    "entropy_base": Rule(lambda seen: _column(seen.base.entropy), thresholds=POSITIVE),
    "entropy_rl": Rule(lambda seen: _column(seen.rl.entropy), thresholds=POSITIVE),
    "random": Rule(lambda seen: seen.gate, fires="below", thresholds=(0.0, 1.0), is_rate=True),
    "always": Rule(lambda seen: torch.ones_like(seen.gate), thresholds=None),
    "never": Rule(lambda seen: torch.zeros_like(seen.gate), thresholds=None),
}
"""By name."""


@dataclass(frozen=True)
class Intervention:
    """A rule with its threshold, who drafts, and what a fired token is drawn from.

    Attributes:
        rule: A name of ``RULES``, or a name of the user's own where ``custom`` is given.
        threshold: τ; None for ``always`` and ``never``.
        primary: The policy that drafts.
        gamma: Draw fired tokens from π_RL·exp(γ·Δlog p) instead of the other policy.
        custom: A rule of the user's own.
    """

    rule: str
    threshold: float | None = None
    primary: Side = "base"
    gamma: float | None = None
    custom: Rule | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            ValueError: An unknown rule, a threshold of the wrong sign, a γ that is not finite, or
                a gate that looks at the draft before an extrapolation of an RL draft.
        """
        if self.custom is None and self.rule not in RULES:
            raise ValueError(f"expected a rule of {', '.join(RULES)}, got {self.rule!r}")
        if self.threshold is not None:
            self.definition.check(self.rule, self.threshold)
        elif self.definition.thresholds is not None:
            raise ValueError(f"rule {self.rule} needs a threshold")
        if self.gamma is None:
            return
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise ValueError(f"expected a finite gamma of at least 0, got {self.gamma}")
        if self.primary == "rl" and self.definition.sees_draft:
            raise ValueError(
                f"rule {self.rule} looks at the draft: where the RL policy drafts, an "
                "extrapolation with it would not give the RL policy at gamma 0; take one that "
                "looks at the distributions alone (kl, js, entropy_base, entropy_rl)"
            )

    @property
    def definition(self) -> Rule:
        """The rule itself."""
        return self.custom or RULES[self.rule]

    def beyond(self, value: Float[Tensor, "n #m"]) -> Bool[Tensor, "n #m"]:
        """Where the rule fires, of its statistic's values."""
        return self.definition.beyond(value, 1.0 if self.threshold is None else self.threshold)

    def fired(self, seen: Seen) -> Bool[Tensor, "n #m"]:
        """Where the rule fires."""
        return self.beyond(self.definition.statistic(seen))

    def redraw(self, base: Distribution, rl: Distribution) -> Float[Tensor, "n v"]:
        """Logits of what a fired token is drawn from, before temperature and filters."""
        if self.gamma is not None:
            return extrapolated(base, rl, self.gamma)
        return rl.logits if self.primary == "base" else base.logits


def extrapolated(base: Distribution, rl: Distribution, gamma: float) -> Float[Tensor, "n v"]:
    """(1 + γ)·log π_RL − γ·log π_base: logits of π_RL·exp(γ·Δlog p) (arXiv 2603.22117).

    An id that the RL policy can't draw stays out, whatever the base policy says.

    Raises:
        ValueError: The base policy can't draw what the RL policy can: the result is not finite.
    """
    if gamma == 0.0:
        return rl.logits
    logits = torch.where(rl.logp == -torch.inf, -torch.inf, rl.logp + gamma * (rl.logp - base.logp))
    if not bool((logits.amax(-1) < torch.inf).all()):  # NaN fails as well
        raise ValueError(
            f"gamma {gamma:g} gives a distribution that is not finite: log p of a token is "
            f"−infinity under base, or {gamma:g}·Δlog p is beyond float32; take a smaller gamma, "
            "or 0 where base can't draw what rl can"
        )
    return logits
