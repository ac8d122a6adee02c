"""Tiny checkpoints of every type that ``AutoModelForCausalLM`` knows, with random weights.

They have few layers and are narrow; their limits (windows, chunks, context) are the config's own,
so that the trial of a policy has to shrink them itself.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dlogp_ray.policies.twin import small_model

TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

SSM = {"hidden_size": 512, "mamba_n_heads": 16, "mamba_d_state": 32, "mamba_chunk_size": 32}
DEFAULTS: dict[str, dict[str, Any]] = {
    "bamba": SSM | {"mamba_d_head": 64},
    "falcon_h1": SSM | {"mamba_d_ssm": 128, "mamba_d_head": 8},
    "granitemoehybrid": SSM
    | {"mamba_d_head": 64, "layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "mamba2": {"hidden_size": 512, "num_heads": 16, "state_size": 32, "chunk_size": 32},
    "nemotron_h": {"mamba_num_heads": 16, "ssm_state_size": 32, "chunk_size": 32},
    "zamba2": {"chunk_size": 32},
    "deepseek_v2": {"num_experts_per_tok": 2, "moe_intermediate_size": 1_024},
    "dots1": {
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 48, "head_dim": 128},
    "xmod": {"default_language": "en_XX"},
}
"""Of types whose defaults make no model, one that lacks what is special, or one that is slow."""

NOT_MADE = {
    "blt": "its parts are of sizes that no one factor divides",
    "cohere_compass_text": "its default config has no rope_parameters by layer type",
    "dbrx": "its default attention config has no rope_theta",
    "emu3": "AutoModelForCausalLM can't load what its text model saves",
    "gemma3n": "needs timm",
    "gemma4_assistant": "its default config is refused by its own validation",
    "gemma4_unified_assistant": "its default config is refused by its own validation",
    "mllama": "AutoModelForCausalLM can't load what its text model saves",
    "musicgen": "text and audio configs apart; no single text config",
    "musicgen_melody": "text and audio configs apart; no single text config",
    "qwen4_exp": "its default config has no head_dim",
    "qwen4_exp_text": "its default config has no head_dim",
}
"""Types of which there is no tiny model, and why."""


def save_tiny(folder: Path, kind: str, **settings: Any) -> Path:
    """A checkpoint in float32, whose logits have a standard deviation of 4.5.

    Args:
        folder: Where to.
        kind: Of ``TYPES``.
        settings: Of the config, whose other values are the type's own defaults.
    """
    config = transformers.AutoConfig.for_model(kind, **(DEFAULTS.get(kind, {}) | settings))
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.device("meta"):
        large: Any = transformers.AutoModelForCausalLM.from_config(config)
    small = small_model(large)
    assert small is not None
    with torch.no_grad():
        ids = torch.arange(2, 42)[None]
        logits = small(input_ids=ids, use_cache=False).logits
        small.get_output_embeddings().weight.mul_(4.5 / logits.std())
    small.save_pretrained(folder)
    return folder
