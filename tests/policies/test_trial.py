"""The trial at loading: what it can't reach, what it remembers, and what it leaves as it was."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from against_plain import plain_logps
from model_families import (
    ALONE,
    FAMILIES,
    GPT,
    MHA,
    MOE,
    PACKED,
    PADDED,
    SMALL,
    Family,
    rope,
    save_model,
)

from dlogp_ray.errors import Refused, RowRejected
from dlogp_ray.policies import trial
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.loading import load_model
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.split import Split
from dlogp_ray.policies.trial import check_weights
from dlogp_ray.policies.twin import TEXT, twin_of
from dlogp_ray.scoring.scorer import PairScorer


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_found", {})


def load(folder: Path, **options: Any) -> Policy:
    return Policy.load(resolve("p", str(folder)), **options)


def texts_of(*lengths: int) -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    ids = (rng.integers(61, size=n).astype(np.int32) for n in lengths)
    return [TokenSequence(text[:3], text[3:]) for text in ids]


def score(policy: Policy, texts: list[TokenSequence]) -> np.ndarray:
    scorer = PairScorer({"p": policy}, base=None, token_budget=2_048)
    return np.concatenate([one["p"]["logp"] for one in scorer.score(texts)])


def assert_as_plain(policy: Policy, folder: Path, texts: list[TokenSequence]) -> None:
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    # two float32 forwards of one model: roundings of logits below 30
    np.testing.assert_allclose(score(policy, texts), plain_logps(plain, texts), atol=1e-4)


def test_a_policy_without_a_twin_is_tried_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "twin_of", lambda model: None)
    folder = save_model(tmp_path, FAMILIES["llama"], seed=0)
    policy = load(folder)
    assert policy.batching is PADDED
    assert TEXT <= policy.reach < 1_000
    assert_as_plain(policy, folder, texts_of(9, 30, 40))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_policy_that_was_tried_itself_has_its_weights_back(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path, FAMILIES["llama"], seed=0)
    before = dict(load(folder, dtype=dtype).parameters())
    monkeypatch.setattr(trial, "_found", {})
    monkeypatch.setattr(trial, "twin_of", lambda model: None)
    after = dict(load(folder, dtype=dtype).parameters())
    assert {weight.dtype for weight in after.values()} == {getattr(torch, dtype)}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_model_that_can_t_be_run_in_its_dtype_is_refused(tmp_path: Path) -> None:
    # From a chunk of 16 tokens on it multiplies float32 by bfloat16, which torch doesn't.
    folder = save_model(tmp_path, FAMILIES["xlstm, cap"], seed=0)
    assert load(folder, dtype="float32").batching is PADDED
    reason = r"policy p: xLSTM.* can't be run in bfloat16: RuntimeError: expected"
    with pytest.raises(Refused, match=reason):
        load(folder, dtype="bfloat16")


def test_a_twin_that_can_t_be_run_in_a_dtype_is_no_verdict(tmp_path: Path) -> None:
    # Rows of 80 bytes, which torch's grouped products take, and of 10 in the twin.
    experts = MOE | {"hidden_size": 64, "head_dim": 32, "intermediate_size": 40}
    folder = save_model(tmp_path, Family("Mixtral", SMALL | experts), seed=0)
    assert load(folder, dtype="bfloat16").batching is PACKED


def test_what_begins_beyond_a_trial_is_scored_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another encoding from the 301st token on, where no trial of a policy itself comes.
    monkeypatch.setattr(trial, "twin_of", lambda model: None)
    scaled = rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0, 3.0, 4.0, 5.0])
    scaled["rope_parameters"]["original_max_position_embeddings"] = 300
    limits = {"original_max_position_embeddings": 300, "max_position_embeddings": 1_000}
    folder = save_model(tmp_path, Family("Phi3", SMALL | limits | scaled), seed=0)
    policy = load(folder)
    assert policy.batching is PADDED
    assert policy.reach < 300
    assert_as_plain(policy, folder, texts_of(9, 350, 400, 30))


def test_a_limit_that_can_t_be_shrunk_bounds_what_shares_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path, FAMILIES["llama"], seed=0)
    assert load(folder).batching is PACKED
    monkeypatch.setattr(trial, "_found", {})
    monkeypatch.setattr(trial, "twin_of", lambda model: replace(twin_of(model), unseen=30))
    policy = load(folder)
    assert (policy.batching, policy.reach) == (PADDED, 29)
    assert_as_plain(policy, folder, texts_of(9, 29, 30, 60))


def test_limits_of_long_texts_are_shrunk_below_those_of_a_trial(tmp_path: Path) -> None:
    family = Family("Mistral", SMALL | {"sliding_window": 4_096, "max_position_embeddings": 32_768})
    model = transformers.AutoModelForCausalLM.from_pretrained(save_model(tmp_path, family, seed=0))
    twin = twin_of(model)
    assert twin is not None
    assert twin.unseen is None
    assert twin.model.config.sliding_window < TEXT
    assert model.config.sliding_window == 4_096


def test_a_twin_has_every_kind_of_layer(tmp_path: Path) -> None:
    # Only its last layer attends to all.
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    family = Family(
        "Gemma3Text",
        SMALL
        | {"num_hidden_layers": 6, "layer_types": kinds, "sliding_window": 5, "head_dim": 8}
        | {"query_pre_attn_scalar": 8},
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(save_model(tmp_path, family, seed=0))
    twin = twin_of(model)
    assert twin is not None
    assert set(twin.model.config.layer_types) == set(kinds)


def test_policies_of_one_architecture_are_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(trial, "twin_of", lambda model: tried.append(model) or twin_of(model))
    for seed in (0, 1):
        load(save_model(tmp_path / str(seed), FAMILIES["llama"], seed))
    assert len(tried) == 1
    load(tmp_path / "0", dtype="bfloat16")
    assert len(tried) == 2
    load(save_model(tmp_path / "other", FAMILIES["llama, dynamic"], 0))
    assert len(tried) == 3


def test_a_trial_leaves_the_random_numbers_of_its_process_alone(tmp_path: Path) -> None:
    folder = save_model(tmp_path, FAMILIES["llama"], seed=0)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    load(folder)
    assert torch.equal(torch.rand(3), wanted)


POSITIONS = {
    "gpt2": Family("GPT2", GPT),
    "opt": Family("OPT", MHA | {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    # Its config has another name for them.
    "whisper": Family(
        "Whisper",
        {"vocab_size": 61, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4}
        | {"decoder_ffn_dim": 48, "encoder_layers": 2, "max_target_positions": 128},
    ),
}


@pytest.mark.parametrize("case", POSITIONS)
def test_a_text_of_more_tokens_than_positions_is_too_long(case: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, POSITIONS[case], seed=0)
    policy = load(folder)
    assert_as_plain(policy, folder, texts_of(128, 9))
    with pytest.raises(
        RowRejected, match=r"3 prompt and 126 response tokens; .* take 128"
    ) as error:
        score(policy, texts_of(9, 129))
    assert error.value.status == "too_long"


def test_an_encoding_without_a_table_runs_beyond_its_context(tmp_path: Path) -> None:
    folder = save_model(tmp_path, FAMILIES["llama"], seed=0)
    assert_as_plain(load(folder), folder, texts_of(200, 9))


def test_what_runs_alone_may_have_run_longer_texts_before(tmp_path: Path) -> None:
    folder = save_model(tmp_path, FAMILIES["llama, dynamic"], seed=0)
    policy = load(folder)
    assert policy.batching is ALONE
    assert_as_plain(policy, folder, texts_of(60, 9, 40))


@pytest.mark.parametrize(("noise", "fits"), [(3e-4, True), (1e-2, False)])
def test_a_rounding_between_two_passes_is_no_other_lm_head(
    noise: float, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1e-4 was seen in float32 on two threads (SmolLM2-135M with an adapter, one token of eight).
    split = Split("p", load_model(resolve("p", str(save_model(tmp_path, FAMILIES["llama"], 0)))))
    padded = split.padded

    def rounded(ids: torch.Tensor) -> torch.Tensor:
        hidden = padded(ids)
        return hidden + noise * hidden.std() * torch.randn_like(hidden)

    monkeypatch.setattr(split, "padded", rounded)
    with nullcontext() if fits else pytest.raises(Refused, match="hidden states between"):
        check_weights(split)
