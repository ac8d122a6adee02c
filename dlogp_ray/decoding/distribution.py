"""Next-token distributions: what rules look at, and what tokens are drawn from.

Rules look at the distributions as the policies give them; temperature and filters apply to what is
drawn from alone (arXiv 2603.22117).

Shapes: n positions, v vocabulary, m candidates of each position.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CLOSE_DRAW = 1e-4
"""A draw this close to where another token begins may fall to that one after other roundings."""
_NUCLEUS = 256
"""The likeliest ids that are tried for a top-p before the whole vocabulary is sorted."""


class Distribution:
    """Distributions over the next token, at temperature 1 and unfiltered.

    Args:
        logits: [n, v] float32; −inf for an id that can't be drawn.
    """

    def __init__(self, logits: Float[Tensor, "n v"]) -> None:
        """Everything else is computed when it is asked for."""
        self.logits = logits

    def __len__(self) -> int:
        """n."""
        return len(self.logits)

    @cached_property
    def _lse(self) -> Float[Tensor, "n 1"]:
        return torch.logsumexp(self.logits, -1, keepdim=True)

    @cached_property
    def logp(self) -> Float[Tensor, "n v"]:
        """Log-probabilities, in nats."""
        return self.logits - self._lse

    @cached_property
    def probabilities(self) -> Float[Tensor, "n v"]:
        """exp(logp)."""
        return self.logp.exp()

    def logp_of(self, ids: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Log-probabilities of some ids only, for less."""
        return self.logits.gather(1, ids) - self._lse

    @cached_property
    def entropy(self) -> Float[Tensor, " n"]:
        """H(π) = −Σ π log π, in nats."""
        return -_expectation(self.probabilities, self.logp)

    def kl(self, other: "Distribution") -> Float[Tensor, " n"]:
        """KL(self ‖ other), in nats; infinite where the other lacks what this one has."""
        return _expectation(self.probabilities, self.logp - other.logp)

    def js(self, other: "Distribution") -> Float[Tensor, " n"]:
        """The true Jensen-Shannon divergence, in nats (arXiv 2603.22446): ½KL(·‖m) of both."""
        log_m = torch.logaddexp(self.logp, other.logp) - torch.log(torch.tensor(2.0))
        return 0.5 * (
            _expectation(self.probabilities, self.logp - log_m)
            + _expectation(other.probabilities, other.logp - log_m)
        )


def _expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """Σ p·x over ids with p > 0: elsewhere x may be infinite or undefined."""
    return torch.where(probabilities > 0, probabilities * values, 0.0).sum(-1)


@dataclass(frozen=True)
class Sampling:
    """Temperature and filters of what is drawn from, in the order in which ``generate`` has them.

    Attributes:
        temperature: Divides the logits, > 0.
        top_k: Only the k likeliest ids; 0 for all.
        top_p: Only the fewest ids, likeliest first, that have this much probability; 1 for all.
        min_p: Only ids with at least this share of the likeliest one's probability; 0 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def apply(self, logits: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
        """Probabilities of what is drawn: each row sums to 1."""
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[1]:
            smallest = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < smallest, -torch.inf)
        probabilities = torch.softmax(logits, -1)
        if self.top_p < 1.0:
            probabilities = _renormalised(_nucleus(probabilities, self.top_p))
        if self.min_p > 0.0:
            least = probabilities.amax(-1, keepdim=True) * self.min_p
            probabilities = _renormalised(probabilities.masked_fill(probabilities < least, 0.0))
        return probabilities


def _renormalised(probabilities: Tensor) -> Tensor:
    return probabilities / probabilities.sum(-1, keepdim=True)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero for the ids outside: an id stays while those before it have less than ``top_p``."""
    width = probabilities.shape[1]
    for largest in (min(_NUCLEUS, width), width):
        values, ids = probabilities.topk(largest)  # sorted
        before = values.double().cumsum(-1) - values
        if largest == width or bool((before[:, -1] + values[:, -1] >= top_p).all()):
            break
    kept = values.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(1, ids, kept)


def draw(
    probabilities: Float[Tensor, "n v"], numbers: Float[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """The id of each position whose share of [0, 1), in the order of ids, holds its number.

    Args:
        probabilities: Each row sums to 1.
        numbers: float64 in [0, 1).

    Returns:
        Ids, and whether the number lies within ``CLOSE_DRAW`` of a neighbour's share.
    """
    ends = probabilities.cumsum(-1, dtype=torch.float64)
    # Roundings leave the last end beside 1; scaled, the number is always inside some share.
    at = numbers[:, None] * ends[:, -1:]
    ids = torch.searchsorted(ends, at, right=True)
    ids.clamp_(max=probabilities.shape[1] - 1)
    own = probabilities.gather(1, ids).double()
    end = ends.gather(1, ids)
    above, below = end - at, at - (end - own)
    # The first share has nothing below it, and the last nothing above.
    last = end >= ends[:, -1:]
    first = end - own <= 0.0
    close = ((above < CLOSE_DRAW) & ~last) | ((below < CLOSE_DRAW) & ~first)
    return ids[:, 0], close[:, 0]
