"""What an intervention makes of a position: its exact next-token distribution.

    P(y) = π_prim(y)·[the rule does not fire on y] + Σ_d π_prim(d)·[it fires on d] · π_redraw(y)

with π_prim and π_redraw as they are drawn from, filters applied. Drawing from it once is drawing,
and drawing again where the rule fires.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dlogp_ray.decoding.distribution import Distribution, Sampling
from dlogp_ray.decoding.rules import Intervention, Seen


def next_token_distribution(
    intervention: Intervention, base: Distribution, rl: Distribution, sampling: Sampling
) -> Float[Tensor, "n v"]:
    """P(y) of each position, as above; for ``random`` it fires with probability τ.

    Args:
        intervention: Which; a rule of the user's own must not use the gate's numbers.
        base: The base policy's distributions.
        rl: The RL policy's.
        sampling: Temperature and filters of both draws.
    """
    primary = base if intervention.primary == "base" else rl
    n, v = primary.logits.shape
    drawn = sampling.apply(primary.logits).double()
    if intervention.rule == "random":
        fires = torch.full_like(drawn, float(intervention.threshold or 0.0))
    else:
        every_id = torch.arange(v, device=drawn.device).expand(n, v)
        gate = torch.zeros(n, 1, dtype=torch.float64, device=drawn.device)
        seen = Seen(base, rl, intervention.primary, every_id, gate)
        fires = intervention.fired(seen).expand(n, v).double()
    again = sampling.apply(intervention.redraw(base, rl)).double()
    return drawn * (1 - fires) + (drawn * fires).sum(-1, keepdim=True) * again
