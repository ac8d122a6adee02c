"""What a refused adapter's message advises is the same model, or can't be done: tried with peft."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from conftest import make_adapter, make_policy_folder
from peft.tuners.lora.config import ArrowConfig, BdLoraConfig, KasaConfig, LoraGAConfig
from transformers import AutoModelForCausalLM

import dlogp_ray.policies
from dlogp_ray.errors import Refused
from dlogp_ray.policies.adapter_files import resolve_adapter
from dlogp_ray.policies.adapters import load_policies
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Policy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning:peft.*"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:torch.*"),
]

README = Path(dlogp_ray.policies.__file__).with_name("README.md").read_text(encoding="utf-8")
(MERGING,) = re.findall(r"^```python\n([^`]*merge_and_unload.*?)^```", README, re.M | re.S)
LOADING = next(line for line in MERGING.splitlines() if line.startswith("model = "))
ATTENTION = ["q_proj", "v_proj"]
HEAD = [*ATTENTION, "lm_head"]
IDS = torch.randint(2, 24, (1, 12), generator=torch.Generator().manual_seed(0))
CHANGED_NATS = 0.01


def kind(name: str, **options: Any) -> Any:
    """The config of a kind that older versions of peft don't export."""
    return peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[name]](**options)


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**({"r": 4, "target_modules": HEAD} | options))


def causal(config: type, **options: Any) -> Any:
    return config(task_type="CAUSAL_LM", **options)


REFUSED: dict[str, Callable[[], Any]] = {
    "AdaLoRA": lambda: peft.AdaLoraConfig(init_r=4, target_r=2, target_modules=HEAD, total_step=10),
    "KaSA": lambda: lora(kasa_config=KasaConfig()),
    "PiSSA": lambda: lora(init_lora_weights="pissa"),
    "repeated layers": lambda: lora(layer_replication=[(0, 2), (1, 2)]),
    "tokens": lambda: kind("TRAINABLE_TOKENS", target_modules=["embed_tokens"], token_indices=[3]),
    "OLoRA": lambda: lora(init_lora_weights="olora"),
    "BD-LoRA": lambda: lora(
        target_modules=ATTENTION,
        use_bdlora=BdLoraConfig(["q_proj"], ["v_proj"], nblocks=2),
    ),
    "QALoRA": lambda: lora(use_qalora=True, qalora_group_size=16),
    "LN tuning": lambda: peft.LNTuningConfig(target_modules=["norm", "input_layernorm"]),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=8, target_modules=HEAD),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=10, target_modules=HEAD),
    "VBLoRA": lambda: peft.VBLoRAConfig(vector_length=8, num_vectors=16, target_modules=HEAD),
    "RoAd": lambda: kind("ROAD", group_size=8, target_modules=HEAD),
    "SHiRA": lambda: kind("SHIRA", r=4, target_modules=HEAD),
    "C3A": lambda: kind("C3A", block_size=8, target_modules=HEAD),
    "WaveFT": lambda: kind("WAVEFT", n_frequency=10, target_modules=HEAD),
    "GraLoRA": lambda: kind("GRALORA", r=4, gralora_k=2, target_modules=HEAD),
    "PSOFT": lambda: kind("PSOFT", r=4, target_modules=HEAD),
    "MiSS": lambda: kind("MISS", r=4, target_modules=HEAD),
} | {
    name: lambda name=name: kind(name, target_modules=HEAD)
    for name in (
        "FROD PVERA GLORA HRA UNILORA RANDLORA HIRA OSF DELORA TINYLORA PEANUT SUPERTUNING DEFT"
    ).split()
}
"""On the head or the embeddings, where they can be."""
SERVED: dict[str, Callable[[], Any]] = {
    "embeddings": lambda: lora(target_modules=[*ATTENTION, "embed_tokens"]),
    "tied adapters": lambda: lora(
        target_modules=[*ATTENTION, "embed_tokens", "lm_head"], ensure_weight_tying=True
    ),
    "whole head": lambda: lora(target_modules=ATTENTION, modules_to_save=["lm_head"]),
    "tied embeddings": lambda: lora(
        target_modules=ATTENTION, modules_to_save=["embed_tokens"], ensure_weight_tying=True
    ),
    "some tokens": lambda: lora(
        target_modules=ATTENTION, trainable_token_indices={"embed_tokens": [3, 5]}
    ),
    "IA3": lambda: peft.IA3Config(target_modules=HEAD, feedforward_modules=[]),
}
"""Kinds that can be given as they are, but not where they are spread over several GPUs."""


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return make_policy_folder(folder / "base", seed=0, tie_word_embeddings=request.param)


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def logp(model: Any) -> torch.Tensor:
    """[s, v]; of a prompt that virtual tokens stand in front of, without these."""
    with torch.no_grad():
        logits = model.eval()(input_ids=IDS, use_cache=False).logits[0]
    return torch.log_softmax(logits[-IDS.shape[1] :], -1)


def trained(base: Path, folder: Path, config: Any) -> Any:
    """A model as after training, whose adapter is in ``folder``."""
    model = peft.get_peft_model(plain(base), config)
    torch.manual_seed(7)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    assert float((logp(model) - logp(plain(base))).abs().max()) > CHANGED_NATS
    return model


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(Refused) as refused:
        resolve_adapter("rl", str(adapter), base=resolve("base", str(base)))
    return str(refused.value)


def policy_logp(folder: Path) -> torch.Tensor:
    policy = Policy.load(resolve("rl", str(folder)))
    return torch.log_softmax(policy.lm_head.logits(policy.hidden(IDS)[0]), -1)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    # Logits up to 100, where two neighbours in float32 are 7.6e-6 apart: up to 1.9e-5 was seen.
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_where_merging_is_advised_it_is_the_same_model(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "adapter"
    expected = logp(trained(base, adapter, REFUSED[name]()))
    assert 'merge it into its base (policies/README.md, "Merging an adapter")' in refusal(
        base, adapter
    )
    monkeypatch.chdir(tmp_path)
    exec(MERGING, {"base": base, "adapter": adapter})
    assert_same(policy_logp(tmp_path / "merged"), expected)


@pytest.mark.parametrize("name", SERVED)
def test_an_adapter_that_can_t_be_spread_is_the_same_model_when_it_is_merged(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "adapter"
    expected = logp(trained(base, adapter, SERVED[name]()))
    under = resolve("base", str(base))
    checkpoints = {"base": under, "rl": resolve_adapter("rl", str(adapter), base=under)}
    with pytest.raises(Refused, match=r"several GPUs are not supported; merge it .*README"):
        load_policies(checkpoints, device_map="auto")
    monkeypatch.chdir(tmp_path)
    exec(MERGING, {"base": base, "adapter": adapter})
    assert_same(policy_logp(tmp_path / "merged"), expected)


def test_peft_s_own_merging_needs_weights_of_each_layer_s_own(base: Path, tmp_path: Path) -> None:
    """Else the README could do without: where this fails, it can."""
    tied = plain(base).config.tie_word_embeddings
    adapter = tmp_path / "adapter"
    configs = (REFUSED["AdaLoRA"], REFUSED["repeated layers"], SERVED["embeddings"])
    for index, config in enumerate(configs):
        expected = logp(trained(base, adapter / str(index), config()))
        model = peft.PeftModel.from_pretrained(plain(base), str(adapter / str(index)))
        worst = float((logp(model.merge_and_unload()) - expected).abs().max())
        assert (worst > CHANGED_NATS) == (tied or index == 1)


def prepared_for_lora_ga(base: Path) -> tuple[Any, Any]:
    """The model and the config with gradients of some data, as LoRA-GA begins."""
    from peft.tuners.lora.loraga import preprocess_loraga

    model = plain(base)
    config = lora(
        target_modules=ATTENTION, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
    )
    preprocess_loraga(model, config, lambda: model(input_ids=IDS, labels=IDS).loss.backward())
    return model, config


@pytest.mark.parametrize("start", ["pissa_niter_4", "lora_ga"])
def test_a_start_that_can_t_be_repeated_is_merged_where_it_was_trained(
    start: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "adapter"
    if start == "lora_ga":
        of_base, config = prepared_for_lora_ga(base)
    else:
        of_base = plain(base)
        config = lora(init_lora_weights=start, target_modules=ATTENTION)
    model = peft.get_peft_model(of_base, config)
    model.save_pretrained(adapter)
    expected = logp(model)
    text = refusal(base, adapter)
    assert f"it began as {start}, which changes the base's weights; in the process that" in text
    assert 'merge it into its base (policies/README.md, "Merging an adapter")' in text
    later = peft.PeftModel.from_pretrained(plain(base), str(adapter))
    assert float((logp(later) - expected).abs().max()) > CHANGED_NATS
    monkeypatch.chdir(tmp_path)
    exec(MERGING.replace(LOADING, ""), {"base": base, "model": model})
    assert_same(policy_logp(tmp_path / "merged"), expected)


IN_FRONT: dict[str, Callable[[], Any]] = {
    "prompt": lambda: causal(peft.PromptTuningConfig, num_virtual_tokens=4),
    "multitask prompt": lambda: causal(
        peft.MultitaskPromptTuningConfig, num_virtual_tokens=4, num_tasks=1
    ),
    "p-tuning": lambda: causal(
        peft.PromptEncoderConfig, num_virtual_tokens=4, encoder_hidden_size=16
    ),
    "prefix": lambda: causal(peft.PrefixTuningConfig, num_virtual_tokens=4),
    "cpt": lambda: causal(
        peft.CPTConfig, cpt_token_ids=[3, 4], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2]
    ),
    "cartridge": lambda: causal(
        peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType.CARTRIDGE], num_virtual_tokens=4
    ),
    "llama-adapter": lambda: causal(peft.AdaptionPromptConfig, adapter_len=4, adapter_layers=1),
}
BY_TEXT: dict[str, Callable[[], Any]] = {
    "aLoRA": lambda: lora(alora_invocation_tokens=[3]),
    "Poly": lambda: peft.PolyConfig(r=4, n_tasks=1, n_skills=1, target_modules=ATTENTION),
    "Lily": lambda: kind("LILY", target_modules=ATTENTION),
    "Shadow": lambda: kind("SHADOW"),
}


@pytest.mark.parametrize("name", [*IN_FRONT, *BY_TEXT])
def test_where_there_is_nothing_to_merge_the_message_says_so(
    name: str, base: Path, tmp_path: Path
) -> None:
    model = peft.get_peft_model(plain(base), (IN_FRONT | BY_TEXT)[name]())
    model.save_pretrained(tmp_path)
    text = refusal(base, tmp_path)
    because = "vectors in front of the text" if name in IN_FRONT else "depends on the text"
    assert because in text
    assert "can't be merged either" in text
    assert "README" not in text
    if name in IN_FRONT:
        assert not hasattr(model, "merge_and_unload")
    else:
        with pytest.raises(NotImplementedError):
            model.merge_and_unload()


def test_arrow_has_nothing_to_merge(base: Path, tmp_path: Path) -> None:
    from peft.tuners.lora import create_arrow_model

    paths = [str(make_adapter(tmp_path / str(i), base, lora(), seed=i)) for i in range(2)]
    model = create_arrow_model(plain(base), paths, arrow_config=ArrowConfig(top_k=2))
    logp(model)
    model.save_pretrained(tmp_path / "arrow")
    text = refusal(base, tmp_path / "arrow" / "arrow_router")
    assert "adapters with arrow_config are not supported; what it adds" in text
    with pytest.raises(RuntimeError, match="Cannot merge an active Arrow router"):
        model.merge_and_unload()


def test_x_lora_is_merged_into_another_model(base: Path, tmp_path: Path) -> None:
    adapters = {
        str(i): str(make_adapter(tmp_path / str(i), base, lora(target_modules=ATTENTION), seed=i))
        for i in range(2)
    }
    of_base = plain(base)
    of_base.config.use_cache = False
    config = causal(peft.XLoraConfig, hidden_size=32, adapters=adapters)
    model = peft.get_peft_model(of_base, config)
    model.save_pretrained(tmp_path / "xlora")
    assert "type XLORA are not supported" in (text := refusal(base, tmp_path / "xlora"))
    assert "depends on the text" in text
    expected = logp(model)
    assert float((logp(model.merge_and_unload()) - expected).abs().max()) > 0.1
