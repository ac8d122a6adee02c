"""Packed texts against the same text alone."""

import torch

from dlogp_ray.policies.layout import Layout
from dlogp_ray.policies.packing import Segment
from dlogp_ray.policies.policy import Policy


def alone(policy: Policy, *parts: torch.Tensor) -> torch.Tensor:
    text = torch.cat(parts)
    return policy.hidden_packed(text, Layout([Segment(0, len(text))]))


def assert_equal_but_for_rounding(found: torch.Tensor, expected: torch.Tensor) -> None:
    # hidden states of size 1 after two layers; bfloat16 has 2^-8 between neighbours
    atol = 1e-5 if expected.dtype == torch.float32 else 6e-2
    torch.testing.assert_close(found, expected, atol=atol, rtol=atol)
