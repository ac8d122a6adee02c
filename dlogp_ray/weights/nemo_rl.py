"""Weights in NeMo-RL: over prompt and response, [B, S], with 0 at the first position.

    data["advantages"] = data["advantages"] * full_length_weights(
        load_weights("runs/my-run/weights/low_prob"), sample_ids, data["input_ids"], response_mask
    )

NeMo-RL's losses leave out position 0 of every tensor, as no token predicts it. Weights belong to
the advantages: ``token_mask`` is their denominator too, and is made of integers. (The NLL loss has
no advantages, and so no place for weights.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dlogp_ray.weights.table import Missing, PerToken


def full_length_weights(
    weights: PerToken,
    sample_ids: Sequence[str | int],
    input_ids: Tensor,
    response_mask: Tensor,
    *,
    missing: Missing = "error",
) -> Tensor:
    """The weights of a batch: [B, S], float32, 0 at prompts and padding.

    Args:
        weights: What ``load_weights`` opened.
        sample_ids: Of B samples.
        input_ids: [B, S] prompts and responses, right-padded.
        response_mask: [B, S], 1 at tokens of responses.
        missing: What samples get that the table does not have.

    Raises:
        Refused: A sample is not in the table, or its tokens are others there, those of its prompt
            too.
        ValueError: A response begins at position 0, which nothing predicts.
    """
    if bool((response_mask[:, 0] != 0).any()):
        at = int(torch.nonzero(response_mask[:, 0])[0])
        raise ValueError(
            f"sample {sample_ids[at]}: its response begins at position 0, where NeMo-RL has no loss"
        )
    # Where no token is of a response, the prompt ends nowhere.
    begins = (response_mask != 0).int().argmax(dim=1).tolist()
    batch = weights.expected("weights").batch(
        sample_ids,
        input_ids,
        input_ids.size(1),
        mask=response_mask,
        prompt_ids=[
            ids[:begin] if begin else None for ids, begin in zip(input_ids, begins, strict=True)
        ],
        missing=missing,
    )
    return batch.to(input_ids.device)
