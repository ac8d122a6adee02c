"""Policies that are an adapter (LoRA) on the base's weights, of which there is one copy for all.

Each adapter policy is a model of its own: a copy of the base's modules over the same weights, into
which peft puts the adapter. Nothing is switched on or off between passes, and the base is the model
that it would be without adapters. What runs is peft's forward, as in training.

An adapter computes in float32 whatever the body's dtype, and the sum of both is rounded to that: of
the ways to run it under a bfloat16 body, the one that is nearest to float64.
"""

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from dlogp_ray.errors import InputChanged, Refused
from dlogp_ray.policies.adapter_files import MERGE
from dlogp_ray.policies.checkpoint import Checkpoint
from dlogp_ray.policies.loading import load_model
from dlogp_ray.policies.policy import Policy


def load_policies(
    checkpoints: Mapping[str, Checkpoint],
    *,
    dtype: str | Mapping[str, str] = "auto",
    device: str = "cpu",
    device_map: str | None = None,
) -> dict[str, Policy]:
    """Load all policies of a job, by name; adapters share the weights of their base.

    Args:
        checkpoints: With the base of every adapter among them.
        dtype: Of all, or by policy; an adapter's is its base's.
        device: Where they are held, as torch names it.
        device_map: Where each is held instead, as transformers names it.

    Raises:
        Refused: One can't be loaded, or an adapter does not fit its base.
    """
    adapters = [name for name, checkpoint in checkpoints.items() if checkpoint.base is not None]
    if adapters and device_map is not None:
        raise Refused(
            f"policy {adapters[0]}: adapters on a base that is spread over several GPUs are not "
            f"supported; {MERGE}, or set gpus_per_actor: 1"
        )
    models = {
        name: load_model(
            checkpoint,
            dtype=dtype if isinstance(dtype, str) else dtype[name],
            device=device,
            device_map=device_map,
        )
        for name, checkpoint in checkpoints.items()
        if checkpoint.base is None
    }
    for name, checkpoint in checkpoints.items():
        if checkpoint.base is not None:
            models[name] = _adapted(models[checkpoint.base.name], checkpoint)
    # Only now: a policy may change how its model attends, and copies are made of plain models.
    return {name: Policy(name, models[name]) for name in checkpoints}


def _adapted(base: Any, checkpoint: Checkpoint) -> Any:
    """A model over the weights of ``base`` with the adapter in it; ``base`` stays what it is."""
    model = _over_the_same_weights(base)
    try:
        with checkpoint.held_open() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they tell of is an error here
            _put_in(model, folder)
    except InputChanged:
        raise
    except Exception as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise Refused(
            f"policy {checkpoint.name} ({checkpoint.source}): the adapter does not fit the base, "
            f"which is a {type(base).__name__}: {' '.join(reason.split())}"
        ) from error
    head = model.get_output_embeddings()
    if (plain := _plain_head(head)) is not head:
        model.set_output_embeddings(plain)
    return model.requires_grad_(False)


def _put_in(model: Any, folder: Path) -> None:
    """Put the adapter into the model's layers, with all its weights and no others."""
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    of_base = {id(parameter): parameter for parameter in model.parameters()}
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    config.init_lora_weights = True  # a start that changes no weight of the base
    # Its weights are made float32, which peft's layers then compute in.
    wrapped: Any = PeftModel(model, config, autocast_adapter_dtype=True)
    names = getattr(model, "_checkpoint_conversion_mapping", None)
    tensors = load_peft_weights(str(folder), device="cpu", key_mapping=names)
    parameters = dict(wrapped.named_parameters(remove_duplicate=False))

    # Weights of the base that the adapter brings, trained biases for one, are not shared.
    brought = {id(parameters[name]) for name in parameters.keys() & tensors.keys()}
    for key in of_base.keys() & brought:
        of_base[key].data = of_base[key].data.clone()
    shared = [parameter for key, parameter in of_base.items() if key not in brought]
    versions = [parameter._version for parameter in shared]
    result: Any = set_peft_model_state_dict(wrapped, tensors)
    if versions != [parameter._version for parameter in shared]:
        raise ValueError("it would overwrite weights that the base needs")

    if result.unexpected_keys:
        raise ValueError(
            f"{len(result.unexpected_keys)} of its weights have no place there, "
            f"{min(result.unexpected_keys)} for one"
        )
    # By object: tied weights have one entry in the file and two names.
    there = {id(p) for name, p in parameters.items() if name not in result.missing_keys}
    missing = [name for name, p in parameters.items() if id(p) not in there | of_base.keys()]
    if missing:
        raise ValueError(
            f"{len(missing)} of its weights are missing, {min(missing)} for one; "
            "they would be random"
        )


def _over_the_same_weights(model: Any) -> Any:
    """Modules of its own, and parameters that are other objects on one storage."""
    memo: dict[int, Any] = {
        id(parameter): Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, memo)


def _plain_head(head: Any) -> Any:
    """The lm head as one linear layer, which is what policies have; merged in float32."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    if isinstance(head, ModulesToSaveWrapper):
        return head.modules_to_save["default"]
    if not isinstance(head, BaseTunerLayer | AuxiliaryTrainingWrapper):
        return head
    merged: Any = copy.deepcopy(head)
    merged = merged.float()
    if isinstance(head, BaseTunerLayer):
        merged.merge()
        return _Float32Head(merged.get_base_layer())
    return _Float32Head(
        merged.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    )


class _Float32Head(Linear):
    """A linear layer in float32, whatever the dtype of the hidden states."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(torch.float32))
