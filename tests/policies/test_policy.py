"""Loaded policies: their logits against the plain forward, and what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import make_policy_folder
from safetensors.torch import load_file, save_file

from dlogp_ray.errors import Refused
from dlogp_ray.policies import lm_head as lm_head_module
from dlogp_ray.policies import trial
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.lm_head import LmHead
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.policies.policy import Policy
from dlogp_ray.scoring.scorer import PairScorer

SMALL = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SMALL),
    "llama, tied": ("Llama", SMALL | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", SMALL),
    "gpt2": ("GPT2", {"vocab_size": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gemma2, soft cap": ("Gemma2", SMALL | {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "cohere, logit_scale": ("Cohere", SMALL | {"logit_scale": 0.25}),
    "granite, logits_scaling": ("Granite", SMALL | {"logits_scaling": 4.0}),
}


def save_model(folder: Path, kind: str, settings: dict[str, Any]) -> Any:
    """A tiny random model of the architecture, with logits of several nats."""
    specials = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**settings, **specials)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_logp_is_that_of_the_plain_forward(case: str, tmp_path: Path) -> None:
    kind, settings = ARCHITECTURES[case]
    model = save_model(tmp_path, kind, settings)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 24, size=n) for n in (9, 30)]
    scorer = PairScorer({"p": Policy.load(resolve("p", str(tmp_path)))}, base=None, token_budget=64)
    scored = scorer.score([TokenSequence(text[:4], text[4:]) for text in texts])
    for text, result in zip(texts, scored, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(text)[None], use_cache=False).logits[0]
        logp = torch.log_softmax(logits, -1)[range(3, len(text) - 1), text[4:]]
        # two float32 forwards of one model, one of them padded: roundings of logits below 30
        np.testing.assert_allclose(result["p"]["logp"], logp.numpy(), atol=1e-4)
        assert logits.std() > 0.3  # else a scale that is ignored would go unseen


def test_the_soft_cap_of_that_case_bites(tmp_path: Path) -> None:
    # what the test above would not notice if no logit came near the cap of 2
    model = save_model(tmp_path, *ARCHITECTURES["gemma2, soft cap"])
    with torch.no_grad():
        hidden = model.model(input_ids=torch.arange(9)[None]).last_hidden_state
        assert float(model.lm_head(hidden).abs().max()) > 4


@pytest.mark.parametrize(("tile", "compiled"), [(7 * 1_024, False), (2**23, False), (2**23, True)])
def test_float32_logits_from_bfloat16_weights(
    tile: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm_head_module, "TILE_BYTES", tile)
    torch.manual_seed(0)
    hidden = torch.randn(40, 256).bfloat16()
    weight = torch.randn(1_003, 256).bfloat16()  # which no tile of 64 divides
    exact = hidden.double() @ weight.double().T
    # Products of bfloat16 numbers are exact in float32, so only the 255 additions round: at most
    # 255 * 2^-24 of the sum of the absolute terms (Higham, Accuracy and Stability, eq. 3.5).
    bound = 255 * 2.0**-24 * (hidden.double().abs() @ weight.double().abs().T)
    error = (LmHead(weight).logits(hidden, compiled=compiled).double() - exact).abs()
    assert (error <= bound).all()
    rounded = ((hidden @ weight.T).double() - exact).abs()
    # Logits of about 16 have 2^-8 * 8 = 1/16 between neighbours in bfloat16.
    assert float(rounded.max()) > 0.03
    assert float(rounded.max()) > 100 * float(error.max())


def test_bias_scale_and_soft_cap_come_in_this_order() -> None:
    # [1, 1] . [1, 1] = 2; + 1 = 3; * 0.5 = 1.5; 2 tanh(1.5 / 2)
    head = LmHead(torch.ones(1, 2), bias=torch.ones(1), scale=0.5, softcap=2.0)
    assert head.logits(torch.ones(1, 2)).item() == pytest.approx(2 * math.tanh(0.75), abs=1e-6)


def test_unknown_work_on_the_logits_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_policy_folder(tmp_path, seed=0)
    plain = transformers.LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        out.logits = out.logits * 1.01
        return out

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    monkeypatch.setattr(trial, "_found", {})  # what is found of it is not remembered either
    with pytest.raises(Refused, match=r"policy p: LlamaForCausalLM .* its logits"):
        Policy.load(resolve("p", str(folder)))


def test_unknown_work_on_the_hidden_states_is_refused_by_name(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(make_policy_folder(tmp_path, seed=0))
    model.lm_head.register_forward_pre_hook(lambda _module, args: (args[0] * 1.1,))
    with pytest.raises(Refused, match=r"policy p: LlamaForCausalLM changes the hidden states"):
        Policy("p", model)


def test_half_precision_bodies_pass_the_same_check(tmp_path: Path) -> None:
    folder = make_policy_folder(tmp_path, seed=0, dtype="bfloat16")
    policy = Policy.load(resolve("p", str(folder)))
    assert policy.lm_head.weight.dtype == torch.bfloat16
    raised = Policy.load(resolve("p", str(folder)), dtype="float32")
    assert raised.lm_head.weight.dtype == torch.float32


def change_weights(folder: Path, change: Any) -> Path:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_a_nan_weight_is_refused_by_name(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = change_weights(
        make_policy_folder(tmp_path, seed=0), lambda t: t[name].view(-1)[5:6].fill_(math.nan)
    )
    with pytest.raises(Refused, match=rf"policy p: weight {name} holds NaN"):
        Policy.load(resolve("p", str(folder)))


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_a_missing_tensor_is_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = change_weights(make_policy_folder(tmp_path, seed=0), lambda t: t.pop(name))
    with pytest.raises(Refused, match=rf"1 weights are missing .* {name}"):
        Policy.load(resolve("p", str(folder)))


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = change_weights(
        make_policy_folder(tmp_path, seed=0),
        lambda t: t.update({"model.norm.weight": torch.ones(31)}),
    )
    with pytest.raises(Refused, match=r"another shape, model\.norm\.weight"):
        Policy.load(resolve("p", str(folder)))


@pytest.mark.parametrize("kept_bytes", [0, 4, 1_000, -1])
def test_a_truncated_weights_file_is_refused(kept_bytes: int, tmp_path: Path) -> None:
    file = make_policy_folder(tmp_path, seed=0) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(Refused, match=r"policy p .* can't be loaded"):
        Policy.load(resolve("p", str(tmp_path)))
