"""Architectures as tiny random models, each with what is special about it."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from dlogp_ray.policies.split import Batching

PACKED, PADDED, ALONE = Batching.PACKED, Batching.PADDED, Batching.ALONE


class Family(NamedTuple):
    """An architecture of transformers.

    Attributes:
        kind: Its config is ``{kind}Config``.
        settings: Of the config.
        batching: How its texts can share a pass; all with an attention interface and without
            recurrence should be packed.
        without: Settings, or ends of parameters' names, with values that undo what is special.
        attention: The implementation that defines its numbers.
    """

    kind: str
    settings: dict[str, Any]
    batching: Batching = PACKED
    without: tuple[tuple[str, Any], ...] = ()
    attention: str = "eager"


SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MHA = SMALL | {"num_key_value_heads": 4}
GPT = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW = {"sliding_window": 5}
MIXED = WINDOW | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
NO_WINDOW = ("sliding_window", 1_000)
NO_FINAL_CAP = ("final_logit_softcapping", 1e6)
NO_ATTENTION_CAP = ("attn_logit_softcapping", 1e6)
PLAIN_ROPE = ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4})
GEMMA = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 8.0}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
INDEXED = {"n_shared_experts": 1, "index_topk": 6, "index_n_heads": 4, "index_head_dim": 8}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    """A rotary encoding that was trained on 16 positions."""
    given = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 16}
    return {"rope_parameters": given | settings}


FAMILIES = {
    "llama": Family("Llama", SMALL),
    "llama, tied, biases": Family(
        "Llama",
        SMALL | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        without=(("q_proj.bias", 0.0),),
    ),
    "llama, 32,003 ids": Family("Llama", SMALL | {"vocab_size": 32_003}),
    "llama, yarn": Family("Llama", SMALL | rope("yarn", factor=4.0), without=(PLAIN_ROPE,)),
    "llama, dynamic": Family(
        "Llama",
        SMALL | {"max_position_embeddings": 16} | rope("dynamic", factor=2.0),
        ALONE,
        (PLAIN_ROPE,),
    ),
    "qwen2, windows": Family(
        "Qwen2",
        SMALL | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
        without=(NO_WINDOW, ("q_proj.bias", 0.0)),
    ),
    "qwen3": Family("Qwen3", SMALL | {"head_dim": 16}),
    "mistral, windows": Family("Mistral", SMALL | WINDOW, without=(NO_WINDOW,)),
    "ministral3, scaled queries": Family(
        "Ministral3",
        SMALL | {"head_dim": 8} | rope("yarn", factor=4.0, llama_4_scaling_beta=0.5),
        without=tuple(rope("yarn", factor=4.0, llama_4_scaling_beta=0.0).items()),
    ),
    "gemma2, windows, both caps": Family(
        "Gemma2",
        SMALL | MIXED | GEMMA | {"attn_logit_softcapping": 1.0},
        without=(NO_WINDOW, NO_FINAL_CAP, NO_ATTENTION_CAP),
    ),
    "gemma3, windows": Family(
        "Gemma3Text", SMALL | MIXED | {"query_pre_attn_scalar": 8}, without=(NO_WINDOW,)
    ),
    "gemma3n, shared keys and values": Family(
        "Gemma3nText",
        SMALL
        | GEMMA
        | {"num_hidden_layers": 4, "intermediate_size": [48] * 4, "num_kv_shared_layers": 2}
        | WINDOW
        | {"layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 8}
        | {"vocab_size_per_layer_input": 61, "hidden_size_per_layer_input": 8}
        | {"laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4},
        without=(NO_WINDOW, NO_FINAL_CAP),
    ),
    "cohere, logit_scale": Family(
        "Cohere", SMALL | {"logit_scale": 0.25}, without=(("logit_scale", 1.0),)
    ),
    "cohere2, windows, logit_scale": Family(
        "Cohere2",
        SMALL | MIXED | {"logit_scale": 0.25},
        without=(NO_WINDOW, ("logit_scale", 1.0)),
    ),
    "granite, logits_scaling": Family(
        "Granite",
        SMALL | {"logits_scaling": 4.0, "attention_multiplier": 0.4, "residual_multiplier": 0.5},
        without=(("logits_scaling", 1.0), ("attention_multiplier", 0.1)),
    ),
    "gpt2": Family("GPT2", GPT),
    "gpt-neox": Family("GPTNeoX", SMALL),
    "opt": Family("OPT", MHA | {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    "phi, lm-head bias": Family("Phi", MHA, without=(("lm_head.bias", 0.0),)),
    "phi3, windows": Family("Phi3", SMALL | WINDOW, without=(NO_WINDOW,)),
    "phi3, longrope": Family(
        "Phi3",
        SMALL
        | {"original_max_position_embeddings": 16}
        | rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0, 3.0, 4.0, 5.0]),
        ALONE,
        (PLAIN_ROPE,),
    ),
    "olmo2": Family("Olmo2", SMALL),
    "mixtral": Family("Mixtral", SMALL | MOE | WINDOW, without=(NO_WINDOW,)),
    "qwen3-moe": Family(
        "Qwen3Moe",
        SMALL
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    ),
    "gpt-oss, sinks, windows": Family(
        "GptOss", SMALL | MOE | MIXED, without=(NO_WINDOW, ("sinks", -100.0))
    ),
    "deepseek-v3, latent attention": Family("DeepseekV3", MHA | LATENT | {"n_shared_experts": 1}),
    "deepseek-v3.2, indexer": Family(
        "DeepseekV32", MHA | LATENT | INDEXED, ALONE, (("index_topk", 64),)
    ),
    "hy-v4, indexer": Family("HYV4", MHA | LATENT | INDEXED, ALONE, (("index_topk", 64),)),
    "glm-moe-dsa, indexer": Family(
        "GlmMoeDsa", MHA | LATENT | INDEXED, ALONE, (("index_topk", 64),)
    ),
    "minimax-m3, indexer": Family(
        "MiniMaxM3VLText",
        MHA
        | {"layer_types": ["full_attention", "minimax_m3_sparse"], "rotary_dim": 8}
        | {"head_dim": 8, "index_head_dim": 8, "index_topk_blocks": 2, "index_block_size": 4},
        ALONE,
        (("index_topk_blocks", 16),),
    ),
    "llama4, chunks, tempered queries": Family(
        "Llama4Text",
        SMALL
        | {"intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 4, "moe_layers": [1]}
        | {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 8}
        | {"no_rope_layers": [1, 0], "floor_scale": 4},
        PADDED,
        (("attention_chunk_size", 1_000), ("attn_temperature_tuning", False)),
    ),
    "gpt-neo, windows": Family(
        "GPTNeo",
        {"vocab_size": 61, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
        | {"window_size": 5, "attention_types": [[["global", "local"], 1]]},
        PADDED,
        (("window_size", 256),),
    ),
    "bloom, ALiBi": Family(
        "Bloom", {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4}, PADDED
    ),
    "mpt, ALiBi": Family(
        "Mpt", {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4}, PADDED
    ),
    # transformers' eager attention of this one adds ALiBi twice: once in the mask
    "falcon, ALiBi": Family("Falcon", MHA | {"alibi": True}, PADDED, attention="sdpa"),
    "falcon-h1, lm_head_multiplier": Family(
        "FalconH1",
        SMALL | MAMBA | {"mamba_d_ssm": 64, "head_dim": 8, "lm_head_multiplier": 0.5},
        PADDED,
        (("lm_head_multiplier", 1.0),),
    ),
    "jamba": Family(
        "Jamba",
        SMALL
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4}
        | {"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
        PADDED,
    ),
    "mamba": Family(
        "Mamba",
        {"vocab_size": 61, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2},
        PADDED,
    ),
    "zamba2": Family(
        "Zamba2",
        MHA
        | {"layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1], "adapter_rank": 4}
        | {"n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "mamba_d_state": 8}
        | {"chunk_size": 8, "num_mem_blocks": 1},
        PADDED,
    ),
    "qwen3-next": Family(
        "Qwen3Next",
        SMALL
        | LINEAR
        | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 16},
        PADDED,
    ),
    "xlstm, cap": Family(
        "xLSTM",
        {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4}
        | {"chunk_size": 16, "output_logit_soft_cap": 8.0},
        PADDED,
        (("output_logit_soft_cap", 1e6),),
    ),
    "lfm2": Family("Lfm2", SMALL | {"layer_types": ["conv", "full_attention"]}, PADDED),
    "recurrent-gemma, window, cap": Family(
        "RecurrentGemma",
        SMALL
        | {"intermediate_size": 96, "num_hidden_layers": 3, "lru_width": 32}
        | {"attention_window_size": 8, "logits_soft_cap": 8.0},
        PADDED,
        (("attention_window_size", 1_000), ("logits_soft_cap", 1e6)),
    ),
}


def save_model(folder: Path, family: Family, seed: int) -> Path:
    """A checkpoint whose attention is not flat, with logits of a standard deviation of about 4."""
    specials = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    config = getattr(transformers, f"{family.kind}Config")(**(family.settings | specials))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    kept = ("A_log", "conv", "dt_", "time_")  # decays and steps, which mean something
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 or any(part in name for part in kept):
                weight.add_(torch.randn_like(weight), alpha=0.3 if weight.ndim == 1 else 0.1)
            else:
                weight.normal_(std=weight.shape[-1] ** -0.5)
        logits = model(input_ids=torch.arange(2, 40)[None], use_cache=False).logits
        model.get_output_embeddings().weight.mul_(4.5 / logits.std())
    model.save_pretrained(folder)
    return folder
