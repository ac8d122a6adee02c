"""In every dtype: a plain forward's numbers, or refused by name; one of each kind that leaked."""

from pathlib import Path
from typing import Any

import pytest
from against_plain import DTYPES, can_t_be_run, check, compare
from model_families import ALONE, FAMILIES, MAMBA, MOE, PADDED, SMALL, Family, save_model

from dlogp_ray.errors import Refused
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Policy


def rope(kind: str) -> dict[str, Any]:
    """Of PhiMoE: beyond 16 positions it is scaled as its long mscale says."""
    given = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    scales = {"short_mscale": 1.1, "long_mscale": 1.4, "original_max_position_embeddings": 16}
    return {"rope_parameters": given | scales, "original_max_position_embeddings": 16}


CASES = {
    "llama": FAMILIES["llama"],
    "mixtral": FAMILIES["mixtral"],
    "falcon-h1": Family(
        "FalconH1",
        SMALL | MAMBA | {"mamba_d_ssm": 64, "head_dim": 8, "attention_out_multiplier": 3.0},
        PADDED,
    ),
    "lfm2": FAMILIES["lfm2"],
    "lfm2-moe": Family(
        "Lfm2Moe",
        SMALL
        | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "num_experts": 4}
        | {"moe_intermediate_size": 16, "num_experts_per_tok": 2},
        PADDED,
    ),
    "recurrent-gemma": FAMILIES["recurrent-gemma, window, cap"],
    "plbart": Family(
        "PLBart",
        {"vocab_size": 61, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4}
        | {"decoder_ffn_dim": 48, "is_decoder": True, "max_position_embeddings": 128},
        PADDED,
    ),
    "phimoe, linear": Family("Phimoe", SMALL | MOE | rope("linear"), ALONE),
    "phimoe, yarn": Family("Phimoe", SMALL | MOE | rope("yarn"), ALONE),
    "mamba2": Family(
        "Mamba2",
        {"vocab_size": 61, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}
        | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
        PADDED,
    ),
    "hy-v4": FAMILIES["hy-v4, indexer"],
    "minicpm3": Family(
        "MiniCPM3",
        SMALL
        | {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "dim_model_base": 8}
        | {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 12},
    ),
}


REFUSED = {
    # It chooses the keys of a token among more than its window by how many follow.
    "doge, beyond its window": (
        Family("Doge", SMALL | {"keep_window_size": 16}),
        "looks ahead",
    ),
    # It counts the ids that are not padding to find how long the text is.
    "xlm": (
        Family(
            "XLM",
            {"vocab_size": 61, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True}
            | {"max_position_embeddings": 128, "n_langs": 1},
        ),
        "looks ahead",
    ),
    # Beyond a chunk its hashes are drawn at random.
    "reformer, hashed attention": (
        Family(
            "Reformer",
            {"vocab_size": 61, "hidden_size": 32, "feed_forward_size": 48, "is_decoder": True}
            | {"attn_layers": ["lsh", "lsh"], "num_hidden_layers": 2, "num_attention_heads": 2}
            | {"attention_head_size": 16, "lsh_attn_chunk_length": 8, "num_buckets": 4}
            | {"axial_pos_embds": False, "max_position_embeddings": 128},
        ),
        "does not repeat itself",
    ),
}

# Of each case one half precision at every push, in turn: there texts leaked into each other. In
# float32 test_families has some at every push.
EVERY_PUSH = [
    pytest.param(
        case,
        dtype,
        marks=() if dtype == ("bfloat16", "float16")[at % 2] else pytest.mark.slow,
    )
    for at, case in enumerate(CASES)
    for dtype in DTYPES
]


@pytest.mark.parametrize(("case", "dtype"), EVERY_PUSH)
def test_scores_are_those_of_the_plain_forward(case: str, dtype: str, tmp_path: Path) -> None:
    family = CASES[case]
    seen = compare(save_model(tmp_path, family, seed=0), dtype, longest=60)
    assert seen.batching is family.batching
    check(seen, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FAMILIES)
def test_variants_have_the_scores_of_their_plain_forward(
    case: str, dtype: str, tmp_path: Path
) -> None:
    family = FAMILIES[case]
    folder = save_model(tmp_path, family, seed=0)
    try:
        seen = compare(folder, dtype, longest=60)
    except Refused as refusal:
        if not can_t_be_run(refusal, folder, dtype):
            raise
    else:
        assert seen.batching is family.batching
        check(seen, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_such_scores_is_refused_by_name(case: str, dtype: str, tmp_path: Path) -> None:
    family, reason = REFUSED[case]
    folder = save_model(tmp_path, family, seed=0)
    with pytest.raises(Refused, match=f"policy p: .*{reason}"):
        Policy.load(resolve("p", str(folder)), dtype=dtype)
