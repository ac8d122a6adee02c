"""Schemes by their configs: the weights of a batch of texts.

The same function weighs a trainer's batch and a table's rows. They differ in what the quantiles and
the groups' means are of: of the batch (``whole_of_batch``), or of all rows (``weights.whole``).

Shapes: b texts, t positions of their responses, right-padded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
from jaxtyping import Float, Int, Shaped

from dlogp_ray.config.schemes import (
    AnyScheme,
    Delta,
    Divergence,
    Dominate,
    EntropyTop,
    FutureKl,
    LowProb,
    OfWhole,
    Ppl,
    RsiBand,
)
from dlogp_ray.weights import schemes
from dlogp_ray.weights.schemes import Tensor, upper_quantile_rank

Given = Mapping[str, Any]
Gather = Callable[[Tensor], Tensor]
"""Values of this process -> those of all processes, one after another."""


@dataclass(frozen=True)
class SchemeInputs:
    """What schemes look at; torch or NumPy. What no scheme needs may be None.

    Attributes:
        mask: 1 where a token counts.
        logp_old: log π_old(y), nats; π_old has generated the texts.
        entropy_old: H(π_old), nats.
        logp_current: log π_current(y), nats.
        delta_logp: log p_RL(y) − log p_base(y), nats.
        groups: A number for the prompt of each text.
        advantages: Of each text.
    """

    mask: Shaped[Tensor, "b t"]
    logp_old: Float[Tensor, "b t"] | None = None
    entropy_old: Float[Tensor, "b t"] | None = None
    logp_current: Float[Tensor, "b t"] | None = None
    delta_logp: Float[Tensor, "b t"] | None = None
    groups: Int[Tensor, " b"] | None = None
    advantages: Float[Tensor, " b"] | None = None


@dataclass(frozen=True)
class Whole:
    """What a scheme needs of more than one text.

    Attributes:
        threshold: The entropy from which a token is kept.
        mean: Of log PPL over the group of each text.
        std: Its standard deviation there.
    """

    threshold: float | None = None
    mean: Float[Tensor, " b"] | None = None
    std: Float[Tensor, " b"] | None = None


def weigh(
    chosen: Sequence[AnyScheme],
    texts: SchemeInputs,
    whole: Mapping[AnyScheme, Whole],
    *,
    mean_one: bool = False,
) -> Float[Tensor, "b t"]:
    """The weights of all tokens: the product of the schemes', float32, 1 where the mask is 0.

    Args:
        chosen: Schemes.
        texts: With what they need.
        whole: Of those that need it.
        mean_one: Divide by the mean over each text.

    Raises:
        ValueError: Something that a scheme needs is not there.
    """
    weights = schemes.combine(
        *(_weights(scheme, texts, whole.get(scheme, Whole())) for scheme in chosen)
    )
    return schemes.mean_one(weights, texts.mask) if mean_one else weights


def weigh_batch(
    chosen: Sequence[AnyScheme],
    texts: SchemeInputs,
    *,
    mean_one: bool = False,
    gather: Gather = lambda values: values,
) -> Float[Tensor, "b t"]:
    """``weigh`` with quantiles and groups' means of this batch, as a trainer does on the fly."""
    whole = {scheme: whole_of_batch(scheme, texts, gather) for scheme in chosen}
    return weigh(chosen, texts, whole, mean_one=mean_one)


def whole_of_batch(
    scheme: AnyScheme, texts: SchemeInputs, gather: Gather = lambda values: values
) -> Whole:
    """What a scheme needs of more than one text, taken from a batch.

    Args:
        scheme: One scheme.
        texts: Of this process.
        gather: Brings together the values of all processes; their numbers may differ.

    Raises:
        ValueError: Something that it needs is not there.
    """
    _check(scheme, texts)
    of_whole = scheme.of_whole
    return _OF_BATCH[of_whole](scheme, texts, gather) if of_whole else Whole()


def _threshold_of_batch(scheme: EntropyTop, texts: SchemeInputs, gather: Gather) -> Whole:
    entropy = _detached(texts.entropy_old)
    xp = array_api_compat.array_namespace(entropy)
    values = xp.sort(gather(xp.astype(entropy, xp.float32)[texts.mask != 0]))
    if not len(values):
        return Whole(threshold=0.0)
    return Whole(threshold=float(values[upper_quantile_rank(len(values), scheme.rho)]))


def _moments_of_batch(scheme: Ppl, texts: SchemeInputs, gather: Gather) -> Whole:
    xp = array_api_compat.array_namespace(texts.mask)
    not_empty = xp.any(texts.mask != 0, axis=1)  # a text without tokens has no perplexity
    own = schemes.log_ppl(texts.logp_old, texts.mask)[not_empty]
    groups: Any = texts.groups
    mean, std = _moments(gather(own), gather(groups[not_empty]), groups)
    return Whole(mean=mean, std=std)


_OF_BATCH: Mapping[OfWhole, Callable[[Any, SchemeInputs, Gather], Whole]] = {
    "threshold": _threshold_of_batch,
    "moments": _moments_of_batch,
}


def undefined(scheme: AnyScheme, texts: SchemeInputs, whole: Whole) -> int:
    """How many tokens weigh 1 for want of a definition: no spread in the group, or no entropy."""
    where = _UNDEFINED.get(type(scheme), _nowhere)(scheme, texts, whole)
    return 0 if where is None else int(((texts.mask != 0) & where).sum())


def _nowhere(scheme: AnyScheme, texts: SchemeInputs, whole: Whole) -> None:
    return None


def _without_spread(scheme: Ppl, texts: SchemeInputs, whole: Whole) -> Tensor | None:
    return None if whole.std is None else ~(whole.std > scheme.min_spread)[:, None]


def _without_entropy(scheme: RsiBand, texts: SchemeInputs, whole: Whole) -> Tensor | None:
    return None if texts.entropy_old is None else ~(texts.entropy_old > 0)


_UNDEFINED: Mapping[type[AnyScheme], Callable[[Any, SchemeInputs, Whole], Tensor | None]] = {
    Ppl: _without_spread,
    RsiBand: _without_entropy,
}
"""Where a scheme has no definition."""


def _weights(scheme: AnyScheme, texts: SchemeInputs, whole: Whole) -> Float[Tensor, "b t"]:
    _check(scheme, texts)
    return APPLIED[type(scheme)](scheme, texts, whole, scheme.model_dump(exclude={"scheme"}))


def _entropy_top(scheme: EntropyTop, texts: SchemeInputs, whole: Whole, given: Given) -> Tensor:
    if whole.threshold is None:
        raise ValueError("entropy_top: expected the threshold of a batch or a table, got none")
    return schemes.entropy_top(texts.entropy_old, texts.mask, threshold=whole.threshold)


def _divergence(scheme: Divergence, texts: SchemeInputs, whole: Whole, given: Given) -> Tensor:
    kl = schemes.k3(texts.logp_old, texts.logp_current)
    return schemes.divergence(kl, texts.mask, **given)


def _future_kl(scheme: FutureKl, texts: SchemeInputs, whole: Whole, given: Given) -> Tensor:
    of = {"advantages": texts.advantages, **given}
    return schemes.future_kl(texts.logp_old, texts.logp_current, texts.mask, **of)


APPLIED: Mapping[type[AnyScheme], Callable[[Any, SchemeInputs, Whole, Given], Tensor]] = {
    LowProb: lambda _, texts, __, given: schemes.low_prob(texts.logp_old, texts.mask, **given),
    Dominate: lambda _, texts, __, given: schemes.dominate(texts.logp_old, texts.mask, **given),
    Ppl: lambda _, texts, whole, given: schemes.ppl(
        texts.logp_old, texts.mask, mean=whole.mean, std=whole.std, **given
    ),
    EntropyTop: _entropy_top,
    RsiBand: lambda _, texts, __, given: schemes.rsi_band(
        texts.logp_old, texts.entropy_old, texts.mask, **given
    ),
    Delta: lambda _, texts, __, given: schemes.delta(texts.delta_logp, texts.mask, **given),
    Divergence: _divergence,
    FutureKl: _future_kl,
}
"""Scheme -> its weights, of (scheme, texts, whole, its parameters by name)."""


def _check(scheme: AnyScheme, texts: SchemeInputs) -> None:
    missing = [name for name in scheme.needs if getattr(texts, name) is None]
    if missing:
        raise ValueError(f"{scheme.scheme} needs {', '.join(missing)} of the texts, and got none")


def _detached(values: Any) -> Any:
    return values.detach() if array_api_compat.is_torch_array(values) else values


def _moments(values: Tensor, groups: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (over n − 1) of each wanted group's values; 0 of one or none."""
    xp = array_api_compat.array_namespace(values)
    same = xp.astype(wanted[:, None] == groups[None, :], values.dtype)
    count = xp.sum(same, axis=1)
    mean = (same @ values) / xp.where(count > 0, count, 1.0)
    squares = xp.sum(same * (values[None, :] - mean[:, None]) ** 2, axis=1)
    return mean, xp.sqrt(squares / xp.where(count > 1, count - 1, 1.0))
