"""One policy, one text, no cache: what decoders are compared with."""

import torch

from dlogp_ray.policies.policy import Policy


def logits_after(policy: Policy, text: list[int]) -> torch.Tensor:
    """Logits of the token that follows `text`, [1, v], from a plain forward."""
    with torch.inference_mode():
        hidden = policy.hidden(torch.tensor([text], device=policy.device))
        return policy.lm_head.logits(hidden[0, -1:]).cpu()
