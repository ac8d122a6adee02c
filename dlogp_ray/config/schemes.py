"""The reweighting schemes and their parameters: the only home of their defaults.

A scheme is given by its name alone, or by its name and parameters: ``{scheme: delta, beta: 0.5}``.
Sources: each class; what they compute is in ``weights.schemes``.
"""

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from dlogp_ray.config.model import ConfigModel

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
"""Far beyond any use, and far from what float32 can't hold."""
Bound = Annotated[float, Field(allow_inf_nan=False)]


Need = Literal["logp_old", "entropy_old", "logp_current", "delta_logp", "groups", "advantages"]
"""What a scheme looks at, besides the mask: fields of ``weights.applying.SchemeInputs``."""
OfWhole = Literal["threshold", "moments"]
"""What a scheme needs of more than one text: a quantile of all tokens' entropies, or mean and
standard deviation of log PPL in each group."""


class _Scheme(ConfigModel):
    looks_at: ClassVar[tuple[Need, ...]]
    of_whole: ClassVar[OfWhole | None] = None

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it looks at with these parameters."""
        return self.looks_at


class _Clipped(_Scheme):
    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = getattr(self, "low", None), getattr(self, "high", None)
        if low is not None and high is not None and low > high:
            raise ValueError(f"low {low:g} is more than high {high:g}")
        return self


class LowProb(_Scheme):
    """1 + α(1 − π_old(y)): more weight on unlikely tokens. arXiv 2603.22117, Eq. 8."""

    looks_at = ("logp_old",)

    scheme: Literal["low_prob"] = "low_prob"
    alpha: Strength = 0.2
    """0.2 for Qwen2.5-Math-7B and 0.1 for Qwen3-8B-Base in the paper."""


class Dominate(_Scheme):
    """α·π_old(y) + 1 − α: less weight on unlikely tokens (AR). arXiv 2505.12929."""

    looks_at = ("logp_old",)

    scheme: Literal["dominate"] = "dominate"
    alpha: Share = 0.1
    """0.1 to 0.3 in the paper."""


class Ppl(_Clipped):
    """1 − α·(log PPL − group mean)/group std: more weight on likely texts. arXiv 2508.02260."""

    looks_at = ("logp_old", "groups")
    of_whole = "moments"

    scheme: Literal["ppl"] = "ppl"
    alpha: Strength
    low: Bound | None = None
    """Clamp from below, such as 0.8."""
    high: Bound | None = None
    """Clamp from above, such as 1.2."""
    min_spread: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    """A group whose log PPL has a standard deviation up to this (nats) has no spread: its weights
    are 1. Equal texts that were scored in float32 in other batches differ by less than this."""


class EntropyTop(_Scheme):
    """1 for the tokens of highest entropy, else 0 (80/20 rule). arXiv 2506.01939."""

    looks_at = ("entropy_old",)
    of_whole = "threshold"

    scheme: Literal["entropy_top"] = "entropy_top"
    rho: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the tokens that is kept."""


class Divergence(_Scheme):
    """1 + s·(σ(α·KL(π_old‖π_current)) − ½), KL by the estimate k3. arXiv 2603.22446."""

    looks_at = ("logp_old", "logp_current")

    scheme: Literal["divergence"] = "divergence"
    scale: Annotated[float, Field(ge=-1e6, le=1e6)]
    """s: weights lie between 1 and 1 + s/2."""
    alpha: Positive


class Delta(_Clipped):
    """clip(exp(β·Δlog p), low, high), mean 1 within a sample: the direction itself as weight."""

    looks_at = ("delta_logp",)

    scheme: Literal["delta"] = "delta"
    beta: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    low: Annotated[float, Field(ge=0)] = 0.5
    high: Positive = 2.0


class RsiBand(_Clipped):
    """1 where −log π(y)/H is within [low, high], else 0 (RSI-S). arXiv 2606.31575."""

    looks_at = ("logp_old", "entropy_old")

    scheme: Literal["rsi_band"] = "rsi_band"
    low: Annotated[float, Field(ge=0)]
    high: Positive


class FutureKl(_Clipped):
    """clip(exp(Σ_{k≥t} 2^{−(k−t)/h}·Δ_k), low, high), Δ current against old. arXiv 2603.19835."""

    looks_at = ("logp_old", "logp_current")

    scheme: Literal["future_kl"] = "future_kl"
    half_life: Positive = 32.0
    """h, tokens."""
    low: Annotated[float, Field(ge=0)] = 1.0
    """0.8 for weights on both sides of 1."""
    high: Positive = 1.2
    max_ratio: Annotated[float, Field(gt=1)] | None = 10.0
    """Tokens of negative advantage whose ratio current/old is above this are left out of the sum
    and weigh 1 (3 or 10 in the paper); None leaves none out, and needs no advantage."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """Advantages too, where tokens may be left out."""
        return self.looks_at if self.max_ratio is None else (*self.looks_at, "advantages")


AnyScheme = LowProb | Dominate | Ppl | EntropyTop | Divergence | Delta | RsiBand | FutureKl
SCHEMES: dict[str, type[AnyScheme]] = {
    kind.model_fields["scheme"].default: kind for kind in get_args(AnyScheme)
}


SchemeName = Literal[
    "low_prob", "dominate", "ppl", "entropy_top", "divergence", "delta", "rsi_band", "future_kl"
]
"""Alone, where all of its parameters have defaults."""


def _named(value: object) -> object:
    return {"scheme": value} if isinstance(value, str) else value


Scheme = Annotated[
    Annotated[AnyScheme, Field(discriminator="scheme")],
    BeforeValidator(_named, json_schema_input_type=AnyScheme | SchemeName),
]
