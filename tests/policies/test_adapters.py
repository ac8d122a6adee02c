"""Adapter policies: the numbers of the merged checkpoint, on one copy of the base's weights."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import peft
import pytest
import torch
from conftest import make_adapter, make_policy_folder, make_tokenizer
from safetensors.torch import load_file, save_file

from dlogp_ray.config.trust import Trust
from dlogp_ray.errors import Refused
from dlogp_ray.policies import adapter_files
from dlogp_ray.policies import checkpoint as checkpoint_module
from dlogp_ray.policies.adapter_files import resolve_adapter
from dlogp_ray.policies.adapters import load_policies
from dlogp_ray.policies.checkpoint import Checkpoint, resolve
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.split import Batching
from dlogp_ray.policies.tokenizers import load_tokenizer
from dlogp_ray.scoring.scorer import PairScorer

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:peft.*")

ATTENTION = ["q_proj", "v_proj"]


def merge(folder: Path, base: Path, adapter: Path) -> Path:
    """The same policy as a whole checkpoint."""
    peft.PeftModel.from_pretrained(plain(base), str(adapter)).merge_and_unload().save_pretrained(
        folder
    )
    load_tokenizer(resolve("base", str(base))).save_pretrained(folder)
    return folder


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def load(base: Path, dtype: str = "auto", **adapters: Path) -> dict[str, Policy]:
    under = resolve("base", str(base))
    checkpoints: dict[str, Checkpoint] = {"base": under}
    for name, folder in adapters.items():
        checkpoints[name] = resolve_adapter(name, str(folder), base=under)
    return load_policies(checkpoints, dtype=dtype)


def sequences(n: int = 12) -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 24, size=n) for n in (3, 7)]
    return [TokenSequence(prompts[i % 2], rng.integers(2, 24, size=5 + 2 * i)) for i in range(n)]


def scores(policies: dict[str, Policy], token_budget: int = 64) -> dict[str, dict[str, np.ndarray]]:
    scorer = PairScorer(policies, base="base", token_budget=token_budget)
    scored = scorer.score(sequences())
    return {
        name: {key: np.concatenate([one[name][key] for one in scored]) for key in scored[0][name]}
        for name in policies
    }


CONFIGS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION),
    "all linear": lambda: peft.LoraConfig(r=4, target_modules="all-linear"),
    "dora": lambda: peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "rslora": lambda: peft.LoraConfig(r=4, target_modules=ATTENTION, use_rslora=True),
    "mica": lambda: peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights="mica"),
    "ranks by layer": lambda: peft.LoraConfig(
        r=4, target_modules=ATTENTION, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}
    ),
    "one layer": lambda: peft.LoraConfig(r=4, target_modules=ATTENTION, layers_to_transform=[1]),
    "parameters": lambda: peft.LoraConfig(
        r=4, target_modules=[], target_parameters=["mlp.up_proj.weight"]
    ),
    "lm head": lambda: peft.LoraConfig(r=4, target_modules=[*ATTENTION, "lm_head"]),
    "embeddings": lambda: peft.LoraConfig(r=4, target_modules=[*ATTENTION, "embed_tokens"]),
    "whole head": lambda: peft.LoraConfig(
        r=4, target_modules=ATTENTION, modules_to_save=["lm_head"]
    ),
    "whole embeddings": lambda: peft.LoraConfig(
        r=4, target_modules=ATTENTION, modules_to_save=["embed_tokens", "norm"]
    ),
    "tokens": lambda: peft.LoraConfig(
        r=4, target_modules=ATTENTION, trainable_token_indices={"embed_tokens": [1, 5]}
    ),
    "ia3": lambda: peft.IA3Config(
        target_modules=[*ATTENTION, "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=ATTENTION),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=ATTENTION),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, target_modules=ATTENTION),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=ATTENTION),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_policy_folder(tmp_path / "base", seed=0)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter", base)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_has_the_numbers_of_the_merged_checkpoint(
    kind: str, base: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, CONFIGS[kind]())
    policies = load(base, rl=adapter)
    assert policies["rl"].batching is Batching.PACKED
    found = scores(policies)
    merged = Policy.load(resolve("rl", str(merge(tmp_path / "merged", base, adapter))))
    expected = scores(load(base) | {"rl": merged})
    for key, values in expected["base"].items():
        np.testing.assert_array_equal(found["base"][key], values)
    # W x + B A x and (W + B A) x in float32: up to 3.3e-6 was seen, of KL
    for key, values in expected["rl"].items():
        np.testing.assert_allclose(found["rl"][key], values, atol=1e-5, rtol=0)
    assert np.abs(found["rl"]["logp"] - found["base"]["logp"]).mean() > 0.05


def test_trained_biases_are_the_adapter_s_alone(tmp_path: Path) -> None:
    base = make_policy_folder(tmp_path / "base", seed=0, attention_bias=True)
    config = peft.LoraConfig(r=4, target_modules=ATTENTION, bias="all")
    adapter = make_adapter(tmp_path / "adapter", base, config)
    found = scores(load(base, rl=adapter))
    merged = Policy.load(resolve("rl", str(merge(tmp_path / "merged", base, adapter))))
    expected = scores(load(base) | {"rl": merged})
    np.testing.assert_array_equal(found["base"]["logp"], expected["base"]["logp"])
    np.testing.assert_allclose(found["rl"]["logp"], expected["rl"]["logp"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": {"embed_tokens": [1, 5]}},
    ],
    ids=str,
)
def test_tied_heads_are_what_peft_s_forward_makes_of_them(
    config: dict[str, Any], tmp_path: Path
) -> None:
    base = make_policy_folder(tmp_path / "base", seed=0, tie_word_embeddings=True)
    config = {"target_modules": ATTENTION} | config
    adapter = make_adapter(tmp_path / "adapter", base, peft.LoraConfig(r=4, **config))
    found = scores(load(base, rl=adapter))
    np.testing.assert_array_equal(found["base"]["logp"], scores(load(base))["base"]["logp"])
    expected = forward_logp(peft.PeftModel.from_pretrained(plain(base), str(adapter)))
    # logits of about 40, where two neighbours in float32 are 3.8e-6 apart
    np.testing.assert_allclose(found["rl"]["logp"], expected, atol=2e-5, rtol=0)


SMALL = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.mark.parametrize(
    ("kind", "settings", "config"),
    [
        (
            "GPT2",
            {"vocab_size": 24, "n_embd": 32, "n_layer": 2, "n_head": 4},
            {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
        ),
        (
            "Gemma2",
            SMALL | {"final_logit_softcapping": 2.0},
            {"target_modules": [*ATTENTION, "lm_head"]},
        ),
        (
            "Qwen3Moe",
            SMALL | {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
            {
                "target_modules": ATTENTION,
                "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            },
        ),
    ],
)
def test_other_architectures_have_the_numbers_of_peft_s_forward(
    kind: str, settings: dict[str, Any], config: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    specials = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, f"{kind}Config")(**settings, **specials)
    )
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    model.save_pretrained(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", tmp_path / "base", peft.LoraConfig(r=4, **config))
    found = scores(load(tmp_path / "base", rl=adapter))
    expected = forward_logp(peft.PeftModel.from_pretrained(plain(tmp_path / "base"), str(adapter)))
    np.testing.assert_allclose(found["rl"]["logp"], expected, atol=1e-5, rtol=0)
    assert np.abs(found["rl"]["logp"] - found["base"]["logp"]).mean() > 0.05


def forward_logp(model: Any) -> np.ndarray:
    """Of the responses of ``sequences``, by the model's own forward."""
    parts = []
    for sequence in sequences():
        ids = torch.from_numpy(np.concatenate([sequence.prompt_ids, sequence.response_ids]))
        with torch.no_grad():
            logp = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        start = len(sequence.prompt_ids)
        parts.append(logp[range(start - 1, len(ids) - 1), ids[start:]].numpy())
    return np.concatenate(parts)


def test_all_share_one_copy_of_the_base_s_weights(base: Path, tmp_path: Path) -> None:
    adapters = {
        name: make_adapter(tmp_path / name, base, CONFIGS["all linear"](), seed=seed)
        for seed, name in enumerate(("early", "late"))
    }
    policies = load(base, **adapters)
    storage = {
        name: {p.data_ptr(): p.nbytes for p in policy._model.parameters()}
        for name, policy in policies.items()
    }
    for name in adapters:
        assert storage["base"].keys() < storage[name].keys()
        own = sum(storage[name].values()) - sum(storage["base"].values())
        assert own == sum(t.nbytes for t in load_file(adapters[name] / ADAPTER).values())
        assert (
            policies[name].lm_head.weight.data_ptr() == policies["base"].lm_head.weight.data_ptr()
        )
    assert not (storage["early"].keys() & storage["late"].keys()) - storage["base"].keys()
    # Together and in any order, each has the numbers that it has alone.
    together = scores(policies)
    reordered = scores({name: policies[name] for name in ("late", "base", "early")})
    for name, folder in adapters.items():
        alone = scores(load(base, rl=folder))
        for other in (together, reordered):
            np.testing.assert_array_equal(other[name]["logp"], alone["rl"]["logp"])
            np.testing.assert_array_equal(other[name]["kl_rl_base"], alone["rl"]["kl_rl_base"])
    assert np.abs(together["early"]["logp"] - together["late"]["logp"]).mean() > 0.05


def test_an_adapter_that_changes_nothing_has_the_base_s_numbers_exactly(
    base: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, CONFIGS["all linear"](), size=0)
    found = scores(load(base, rl=adapter))
    np.testing.assert_array_equal(found["rl"]["logp"], found["base"]["logp"])
    assert not found["rl"]["kl_rl_base"].any()


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
def test_under_a_bfloat16_body_an_adapter_computes_in_float32(
    saved: torch.dtype, tmp_path: Path
) -> None:
    base = make_policy_folder(tmp_path / "base", seed=0, dtype="bfloat16", hidden_size=256)
    adapter = make_adapter(tmp_path / "adapter", base, CONFIGS["lora"]())
    change(adapter, lambda tensors: {name: t.to(saved) for name, t in tensors.items()})
    layer = load(base, rl=adapter)["rl"]._model.model.layers[0].self_attn.q_proj
    weight = layer.base_layer.weight
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.manual_seed(0)
    x = torch.randn(200, 256).bfloat16()
    exact = x.double() @ (weight.double() + 2 * up.double() @ down.double()).T  # alpha / r = 2

    def error(y: torch.Tensor) -> float:
        return float((y.double() - exact).square().mean().sqrt())

    with torch.no_grad():
        ours = layer(x)
        merged = x @ (weight.float() + 2 * up @ down).bfloat16().T
        rounded = x @ weight.T + 2 * (x @ down.bfloat16().T) @ up.bfloat16().T
    assert ours.dtype == torch.bfloat16
    # 1.4e-3 against 1.8e-3 and 2.6e-3 (2.1e-3 where the adapter is saved in bfloat16)
    assert error(ours) < min(error(merged), error(rounded))


def test_a_changed_head_is_float32_under_a_bfloat16_body(tmp_path: Path) -> None:
    base = make_policy_folder(tmp_path / "base", seed=0, dtype="bfloat16")
    adapter = make_adapter(tmp_path / "adapter", base, CONFIGS["lm head"](), size=0.03)
    policy = load(base, rl=adapter)["rl"]
    tensors = {name: t.double() for name, t in load_file(adapter / ADAPTER).items()}
    up, down = (tensors[f"base_model.model.lm_head.lora_{x}.weight"] for x in "BA")
    changed = load_file(base / "model.safetensors")["lm_head.weight"].double()
    changed += 2 * up @ down  # alpha / r = 2
    hidden = torch.randn(9, 32).bfloat16()
    # 31 additions of float32, as in the test of float32 logits from bfloat16 weights, and the
    # roundings of the weight and its own four additions
    bound = (31 + 6) * 2.0**-24 * (hidden.double().abs() @ changed.abs().T)
    error = (policy.lm_head.logits(hidden).double() - hidden.double() @ changed.T).abs()
    assert (error <= bound).all()


@pytest.mark.slow
def test_a_compiled_adapter_policy_has_the_same_numbers(base: Path, adapter: Path) -> None:
    policies = load(base, rl=adapter)
    before = scores(policies)
    for policy in policies.values():
        policy.compile()
    after = scores(policies)
    for name in policies:
        np.testing.assert_allclose(after[name]["logp"], before[name]["logp"], atol=1e-5, rtol=0)


ADAPTER = "adapter_model.safetensors"


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = edit(load_file(folder / ADAPTER))
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    return folder


def change_config(folder: Path, **options: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    return folder


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_a_nan_weight_is_refused_by_name(base: Path, adapter: Path) -> None:
    change(adapter, lambda tensors: tensors | {FIRST: tensors[FIRST] * math.nan})
    with pytest.raises(Refused, match=r"policy rl: weight .*q_proj\.lora_A.* holds NaN"):
        load(base, rl=adapter)


def test_a_missing_tensor_is_refused_by_name(base: Path, adapter: Path) -> None:
    change(adapter, lambda tensors: {k: v for k, v in tensors.items() if k != FIRST})
    with pytest.raises(
        Refused, match=r"policy rl .* 1 of its weights are missing, .*q_proj\.lora_A"
    ):
        load(base, rl=adapter)


def test_a_missing_whole_module_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, CONFIGS["whole head"]())
    change(adapter, lambda tensors: {k: v for k, v in tensors.items() if "lm_head" not in k})
    with pytest.raises(Refused, match=r"policy rl .*lm_head\.weight' is missing"):
        load(base, rl=adapter)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"hidden_size": 48}, r"size mismatch for .*layers\.0\.self_attn\.q_proj\.lora_A"),
        ({"num_hidden_layers": 3}, r"4 of its weights are missing, .*layers\.2\.self_attn"),
        ({"num_hidden_layers": 1}, r"4 of its weights have no place there, .*layers\.1\.self_attn"),
    ],
    ids=str,
)
def test_an_adapter_of_another_shape_is_refused(
    shape: dict[str, int], named: str, adapter: Path, tmp_path: Path
) -> None:
    other = make_policy_folder(tmp_path / "other", seed=0, **shape)
    with pytest.raises(Refused, match=rf"policy rl .*{named}"):
        load(other, rl=adapter)


def test_an_adapter_of_another_vocabulary_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, CONFIGS["whole head"]())
    other = make_policy_folder(tmp_path / "other", seed=0, vocab_size=40)
    with pytest.raises(Refused, match=r"policy rl .* size mismatch for .*lm_head"):
        load(other, rl=adapter)


def test_an_adapter_of_another_architecture_is_refused(adapter: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {"vocab_size": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
    GPT2LMHeadModel(GPT2Config(**settings)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(Refused, match=r"policy rl .* is a GPT2LMHeadModel: Target modules"):
        load(tmp_path / "gpt2", rl=adapter)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"peft_type": "OF_TOMORROW"}, r"type OF_TOMORROW are not supported .* not know OF_TOM"),
        ({"peft_type": None}, "type None are not supported .* does not know None"),
        ({"of_tomorrow": 1}, "adapters with of_tomorrow are not supported; .* not know of_tom"),
        ({"init_lora_weights": "of_tomorrow"}, "it began as of_tomorrow, which .* that trained it"),
    ],
    ids=str,
)
def test_what_the_installed_peft_does_not_know_is_refused_by_name(
    options: dict[str, Any], named: str, base: Path, adapter: Path
) -> None:
    """What it knows: test_merging.py."""
    change_config(adapter, **options)
    with pytest.raises(
        Refused, match=rf"policy rl .*{named}.*merge it into its base \(policies/README"
    ):
        load(base, rl=adapter)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_options_of_tomorrow_pass_where_they_are_off(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, CONFIGS[kind]())
    change_config(adapter, an_option_of_tomorrow=False, another=None)
    assert load(base, rl=adapter)["rl"].batching is Batching.PACKED
    change_config(adapter, an_option_of_tomorrow=True)
    with pytest.raises(Refused, match="adapters with an_option_of_tomorrow are not supported"):
        load(base, rl=adapter)


def test_pickled_weights_need_consent(base: Path, adapter: Path) -> None:
    before = scores(load(base, rl=adapter))
    torch.save(load_file(adapter / ADAPTER), adapter / "adapter_model.bin")
    (adapter / ADAPTER).unlink()
    under = resolve("base", str(base))
    with pytest.raises(Refused, match=r"pickled \(adapter_model\.bin\).*allow_pickle: true"):
        resolve_adapter("rl", str(adapter), base=under)
    allowed = resolve_adapter("rl", str(adapter), base=replace(under, trust=Trust(pickle=True)))
    after = scores(load_policies({"base": under, "rl": allowed}))
    np.testing.assert_array_equal(after["rl"]["logp"], before["rl"]["logp"])


@pytest.mark.parametrize("name", ["adapter_config.json", ADAPTER])
def test_an_incomplete_folder_is_refused(name: str, base: Path, adapter: Path) -> None:
    (adapter / name).unlink()
    with pytest.raises(Refused, match=rf"policy rl .*there (is|are) no .*{name}"):
        load(base, rl=adapter)


def test_without_peft_the_extra_is_named(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_files, "find_spec", lambda _name: None)
    with pytest.raises(Refused, match="pip install peft"):
        load(base, rl=adapter)


def test_an_adapter_given_as_a_path_is_refused(base: Path, adapter: Path) -> None:
    # transformers would follow it to the base that its config names
    with pytest.raises(Refused, match=r"Give an adapter as adapter, not as path"):
        resolve("rl", str(adapter))


def test_what_an_adapter_s_folder_lacks_is_the_base_s(base: Path, adapter: Path) -> None:
    under = resolve("base", str(base))
    checkpoint = resolve_adapter("rl", str(adapter), base=under)
    assert (checkpoint.vocab_size, checkpoint.max_tokens) == (24, 64)
    (base / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert checkpoint.end_tokens(make_tokenizer()) == (1, 5, 7)
    (adapter / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert checkpoint.end_tokens(make_tokenizer()) == (1, 9)
    assert checkpoint.identity().keys() == {"adapter_config.json", ADAPTER}
    assert load_tokenizer(checkpoint).get_vocab() == load_tokenizer(under).get_vocab()
    make_tokenizer("10").save_pretrained(adapter)
    assert len(load_tokenizer(checkpoint)) == 4


def test_an_adapter_in_a_store_is_copied(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "CACHE", tmp_path / "cache")
    store = fsspec.filesystem("memory")
    for file in adapter.iterdir():
        store.pipe_file(f"/adapters/rl/{file.name}", file.read_bytes())
    url = resolve_adapter("rl", "memory://adapters/rl", base=resolve("base", str(base)))
    assert url.folder.is_relative_to(tmp_path / "cache")
    assert (url.folder / ADAPTER).read_bytes() == (adapter / ADAPTER).read_bytes()
