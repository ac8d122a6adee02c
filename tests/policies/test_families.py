"""Architectures: each is scored as its plain forward says, or refused by name."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from conftest import DEVICE

from dlogp_ray.errors import Refused
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Batching, Policy
from dlogp_ray.scoring.packing import TokenSequence
from dlogp_ray.scoring.reference import reference_statistics
from dlogp_ray.scoring.scorer import PairScorer

# Logits of up to 20 have 2^-20 = 1e-6 between neighbours in float32, and come out of a few hundred
# roundings: 1e-5 in a log-probability. Entropies and divergences weigh them with logits of the
# same 20 nats; the largest error of any family is a few 1e-5.
TOLERANCE = 1e-4
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


def save_pair(folder: Path, family: Family) -> dict[str, Path]:
    return {
        name: save_model(folder / name, family, seed) for seed, name in enumerate(("base", "rl"))
    }


def load_plain(folder: Path, attention: str, **settings: Any) -> Any:
    """The model as the library has it, in float64, attention and experts as they are defined."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation=attention,
        experts_implementation="eager",
        **settings,
    )
    return model.eval().double()


def make_texts(width: int) -> list[TokenSequence]:
    """Three responses of one prompt and two texts more: 11 to 35 tokens that are fed."""
    rng = np.random.default_rng(0)
    shared, short, long, *responses = (
        rng.integers(2, width, size=n).astype(np.int32) for n in (11, 3, 20, 1, 9, 25, 14, 4)
    )
    prompts = (shared, shared, shared, short, long)
    return [TokenSequence(*parts) for parts in zip(prompts, responses, strict=True)]


def plain_logp(model: Any, text: TokenSequence) -> np.ndarray:
    """[response, v] float64: the whole model run over this text alone."""
    ids = torch.from_numpy(np.concatenate(text).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(text.prompt_ids) - 1 : -1]
    return np.asarray(torch.log_softmax(logits.double(), -1).numpy())


def near(logp: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[n]: how many other ids have a logit that float32 can't tell from that of ``ids``."""
    distance = np.abs(logp - logp[range(len(ids)), ids][:, None])
    return np.asarray((distance <= TOLERANCE).sum(1) - 1)


def check(
    result: dict[str, dict[str, np.ndarray]], base: np.ndarray, rl: np.ndarray, text: TokenSequence
) -> None:
    """Every statistic of the pair: numbers within the tolerance, ids and ranks exact.

    Args:
        result: Of the scorer.
        base: [response, v] reference, nats, over the ids that the base has.
        rl: The same of the other policy; what compares them is over the ids that both have.
        text: What was scored.
    """
    found = {f"{key}_{name}": v for name in ("base", "rl") for key, v in result[name].items()}
    found |= result["rl"] | {"delta_logp": found["logp_rl"] - found["logp_base"]}
    ids = text.response_ids
    common = min(base.shape[1], rl.shape[1])
    reference = reference_statistics(base[:, :common], rl[:, :common], ids.tolist())
    for name, logp in (("base", base), ("rl", rl)):  # over all ids that a policy has
        alone = reference_statistics(logp, logp, ids.tolist())
        reference |= {f"{key}_{name}": alone[f"{key}_{name}"] for key in ("entropy", "rank")}
    top_base, top_rl = reference["top1_id_base"], reference["top1_id_rl"]
    same_top_rl = near(rl[:, :common], top_rl) == 0
    same_tops = same_top_rl & (near(base[:, :common], top_base) == 0)
    for key, wanted in reference.items():
        error = np.abs(found[key].astype(float) - wanted.astype(float))
        allowed = {
            "rank_base": near(base, ids),
            "rank_rl": near(rl, ids),
            "rank_base_of_rl_top1": np.where(same_top_rl, near(base, top_rl), np.inf),
            "logp_base_of_rl_top1": np.where(same_top_rl, TOLERANCE, np.inf),
            "top1_id_base": np.where(near(base, top_base) == 0, 0, np.inf),
            "top1_id_rl": np.where(same_top_rl, 0, np.inf),
            "top1_agree": np.where(same_tops, 0, np.inf),
        }.get(key, TOLERANCE)
        assert (error <= allowed).all(), f"{key}: {error.max():.3g}"
    assert same_tops.mean() > 0.9  # what is left out above is the exception


# One of each kind: of positions, of what attention sees, of layers, of how texts share a pass.
EVERY_PUSH = {
    "llama",
    "llama, tied, biases",
    "llama, dynamic",
    "qwen2, windows",
    "gemma2, windows, both caps",
    "gemma3n, shared keys and values",
    "cohere, logit_scale",
    "gpt2",
    "phi, lm-head bias",
    "mixtral",
    "gpt-oss, sinks, windows",
    "deepseek-v3, latent attention",
    "deepseek-v3.2, indexer",
    "llama4, chunks, tempered queries",
    "bloom, ALiBi",
    "jamba",
    "mamba",
    "qwen3-next",
}


def often(case: str, *more: Any) -> Any:
    """The case as a parameter; of ``make test-slow`` where another stands for it."""
    return pytest.param(case, *more, marks=() if case in EVERY_PUSH else pytest.mark.slow)


def test_the_families_of_every_push_are_there() -> None:
    assert set(FAMILIES) >= EVERY_PUSH


@pytest.mark.parametrize("case", [often(case) for case in FAMILIES])
def test_every_statistic_is_that_of_the_plain_forward(case: str, tmp_path: Path) -> None:
    family = FAMILIES[case]
    folders = save_pair(tmp_path, family)
    policies = {
        name: Policy.load(resolve(name, str(path)), device=DEVICE) for name, path in folders.items()
    }
    assert {policy.batching for policy in policies.values()} == {family.batching}
    texts = make_texts(family.settings["vocab_size"])
    # A model of its own for each text: "dynamic" positions remember longer texts.
    logp = [
        {
            name: plain_logp(load_plain(path, family.attention), text)
            for name, path in folders.items()
        }
        for text in texts
    ]
    for each in logp:
        assert all(of_policy.std(1).mean() >= 3 for of_policy in each.values())
    # 8 tokens: prompts and long responses go through a past; 64: all in one row, or two and three
    for token_budget in (8, 64):
        scorer = PairScorer(policies, base="base", token_budget=token_budget)
        for text, result, each in zip(texts, scorer.score(texts), logp, strict=True):
            check(result, each["base"], each["rl"], text)
            assert not result["base"]["outside"].any()


@pytest.mark.parametrize(
    ("case", "special"),
    [often(case, s) for case, family in FAMILIES.items() for s in family.without],
)
def test_what_is_special_about_a_family_shows(
    case: str, special: tuple[str, Any], tmp_path: Path
) -> None:
    # else the test above would pass for a policy that ignores it
    family, (name, value) = FAMILIES[case], special
    folder = save_model(tmp_path, family, seed=0)
    text = make_texts(family.settings["vocab_size"])[2]
    logp = plain_logp(load_plain(folder, family.attention), text)
    plain = load_plain(folder, family.attention)
    weights = [weight for key, weight in plain.named_parameters() if key.endswith(name)]
    for weight in weights:
        weight.data.fill_(value)
    if not weights:
        plain = load_plain(folder, family.attention, **{name: value})
    assert np.abs(plain_logp(plain, text) - logp).max() > 0.3


@pytest.mark.parametrize("case", ["mamba", "llama, dynamic"])
def test_a_pair_of_two_families_shares_passes_by_the_lesser(case: str, tmp_path: Path) -> None:
    folders = {
        "base": save_model(tmp_path / "base", FAMILIES["mistral, windows"], seed=0),
        "rl": save_model(tmp_path / "rl", FAMILIES[case], seed=1),
    }
    policies = {
        name: Policy.load(resolve(name, str(path)), device=DEVICE) for name, path in folders.items()
    }
    assert policies["rl"].batching < policies["base"].batching
    texts = make_texts(61)
    scored = PairScorer(policies, base="base", token_budget=64).score(texts)
    for text, result in zip(texts, scored, strict=True):
        check(
            result,
            *(plain_logp(load_plain(path, "eager"), text) for path in folders.values()),
            text,
        )


def test_what_counts_along_the_row_is_not_packed_where_short_texts_do_not_show_it(
    tmp_path: Path,
) -> None:
    # Llama 4 scales its queries by 1 + 0.1 log(1 + floor(place in the row / 8,192)).
    family = FAMILIES["llama4, chunks, tempered queries"]
    later = family._replace(settings=family.settings | {"floor_scale": 8_192})
    policy = Policy.load(resolve("p", str(save_model(tmp_path, later, seed=0))))
    assert policy.batching is PADDED


def test_a_head_that_is_padded_to_more_ids(tmp_path: Path) -> None:
    padded = Family("Llama", SMALL | {"vocab_size": 80})
    folders = {
        "base": save_model(tmp_path / "base", FAMILIES["llama"], seed=0),
        "rl": save_model(tmp_path / "rl", padded, seed=1),
    }
    model = load_plain(folders["rl"], "eager").float()
    model.lm_head.weight.data[61:] = 0  # as rows that no text has trained
    model.save_pretrained(folders["rl"])
    policies = {
        name: Policy.load(resolve(name, str(path)), device=DEVICE) for name, path in folders.items()
    }
    texts = make_texts(61)
    for text, result in zip(
        texts, PairScorer(policies, base="base", token_budget=64).score(texts), strict=True
    ):
        base, rl = (plain_logp(load_plain(path, "eager"), text) for path in folders.values())
        assert (base.shape[1], rl.shape[1]) == (61, 80)
        check(result, base, rl, text)
        outside = np.exp(rl[:, 61:]).sum(1)
        assert outside.max() > TOLERANCE
        np.testing.assert_allclose(result["rl"]["outside"], outside, atol=TOLERANCE)


REFUSED = {
    "modernbert-decoder, a layer between body and lm head": (
        Family("ModernBertDecoder", SMALL | {"local_attention": 6}),
        "ModernBertDecoderForCausalLM changes the hidden states",
    ),
    "hyperclovax, logits_scaling multiplies": (
        Family("HyperCLOVAX", SMALL | {"logits_scaling": 4.0}),
        "HyperCLOVAXForCausalLM does something to its logits",
    ),
    "llama, attention in both directions": (
        Family("Llama", SMALL | {"is_causal": False}),
        "LlamaForCausalLM looks ahead",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case: str, tmp_path: Path) -> None:
    family, message = REFUSED[case]
    folder = save_model(tmp_path, family, seed=0)
    with pytest.raises(Refused, match=f"policy p: {message}"):
        Policy.load(resolve("p", str(folder)))
