"""A checkpoint's weights, on one device or spread over several GPUs."""

from pathlib import Path
from typing import Any

import torch

from dlogp_ray.errors import Refused
from dlogp_ray.policies.checkpoint import Checkpoint

SPREAD = "balanced_low_0"
"""A device map of transformers: layers over all GPUs that the process sees, fewer on the first,
which also holds the policies' lm heads and makes the statistics."""


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    device_map: str | dict[str, str] | None = None,
) -> Any:
    """The checkpoint's ``AutoModelForCausalLM``, frozen.

    Args:
        checkpoint: Where the weights are.
        dtype: Of the weights; "auto" is what they were saved in.
        device: Where they go, as torch names it.
        device_map: Where they go instead, if one device is too small, as transformers names it.

    Raises:
        Refused: It can't be loaded, or weights are missing.
        InputChanged: Its files are not those that were hashed.
    """
    with checkpoint.held_open() as folder:
        return _load_model(checkpoint, folder, dtype, device, device_map)


def _load_model(
    checkpoint: Checkpoint,
    folder: Path,
    dtype: str,
    device: str,
    device_map: str | dict[str, str] | None,
) -> Any:
    from transformers import AutoModelForCausalLM

    label = f"policy {checkpoint.name} ({checkpoint.source})"
    wanted = checkpoint.saved_dtype if dtype == "auto" else dtype
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, wanted),
            device_map=device_map,
            trust_remote_code=checkpoint.trust.remote_code,
            use_safetensors=None if checkpoint.trust.pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named below
        )
    except Exception as error:
        raise Refused(f"{label} can't be loaded: {type(error).__name__}: {error}") from error
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        mismatched = [key for key, *_shapes in info["mismatched_keys"]]
        missing = sorted((*info["missing_keys"], *mismatched))
        raise Refused(
            f"{label}: {len(missing)} weights are missing from the checkpoint or have another "
            f"shape, {missing[0]} for one; they would be random"
        )
    # transformers puts what is too much for the devices into other memory, without a word.
    away = {weight.device.type for weight in model.parameters()} - {torch.device(device).type}
    if device_map is not None and away:
        raise Refused(
            f"{label}: the GPUs of one actor do not hold it (parts went to {', '.join(away)}); "
            "give more gpus_per_actor, or fewer policies"
        )
    model.requires_grad_(False)
    return model if device_map is not None else model.to(device)
