"""A model in another dtype, a layer at a time: the numbers of the whole model cast, no trace."""

import copy
import gc
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from conftest import make_adapter, make_policy_folder
from torch import Tensor

from dlogp_ray.policies import linear, trial
from dlogp_ray.policies.adapter_files import resolve_adapter
from dlogp_ray.policies.adapters import load_policies
from dlogp_ray.policies.casting import in_dtype
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.layers import layer_lists
from dlogp_ray.policies.layout import Layout
from dlogp_ray.policies.lm_head import LmHead
from dlogp_ray.policies.packing import Segment
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.split import Batching
from dlogp_ray.policies.twin import small_model

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:peft.*")

KINDS = [
    "llama",
    "gpt2",  # positions in a table, a tied head
    "opt",  # a table that adds to what is looked up
    "gemma3_text",  # a table that scales it
    "plbart",  # the same, by a number
    pytest.param("inkling_text", marks=pytest.mark.slow),  # a norm inside of a table
    "prophetnet",  # a table that returns several things
    "mixtral",  # experts
    "mamba",  # states
    "recurrent_gemma",
    pytest.param("zamba2", marks=pytest.mark.slow),  # one block in several layers
    "bloom",
]
IDS = torch.arange(2, 26)[None]


def in_half(kind: str) -> Any:
    """A tiny model in bfloat16, with random weights."""
    config = transformers.AutoConfig.for_model(kind)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.device("meta"):
        large: Any = transformers.AutoModelForCausalLM.from_config(config)
    model = small_model(large)
    assert model is not None
    return model.to(torch.bfloat16)


def states_and_logits(model: Any) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        out = model(input_ids=IDS, use_cache=False)
        body = model.get_decoder()(input_ids=IDS, use_cache=False)
    return body.last_hidden_state, out.logits


Trace = dict[str, tuple[torch.dtype, int, Tensor]]


def trace(model: torch.nn.Module) -> Trace:
    """Weights and buffers, and where they are."""
    both = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: (t.dtype, t.data_ptr(), t.detach().clone()) for name, t in both}


def assert_same(model: torch.nn.Module, before: Trace) -> None:
    now = trace(model)
    assert now.keys() == before.keys()
    for name, (dtype, place, values) in before.items():
        assert now[name][:2] == (dtype, place), name
        assert torch.equal(now[name][2], values), name
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_the_whole_model_cast(kind: str) -> None:
    half = in_half(kind)
    before = trace(half)
    expected = states_and_logits(copy.deepcopy(half).float())
    rounded = states_and_logits(half)
    with in_dtype(half, torch.float32, head=True):
        found = states_and_logits(half)
    for one, other, less in zip(found, expected, rounded, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
        assert not torch.equal(less.float(), other)
    assert_same(half, before)
    for one, other in zip(states_and_logits(half), rounded, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_of_a_layer_leaves_no_trace(error: type[BaseException]) -> None:
    model = in_half("llama")
    before = trace(model)

    def fail(*_: Any) -> None:
        assert model.model.layers[1].mlp.up_proj.weight.dtype == torch.float32
        raise error

    handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(error), in_dtype(model, torch.float32, head=True):
        states_and_logits(model)
    handle.remove()
    assert_same(model, before)


def test_one_layer_more_is_in_memory() -> None:
    """Of the weights, as many bytes as one layer has in float32; of the table none."""
    config = transformers.LlamaConfig(
        vocab_size=4_096,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    layers = model.model.layers
    seen: list[int] = []
    for layer in (layers[0], layers[-1]):
        layer.mlp.register_forward_pre_hook(lambda *_: seen.append(float32_numbers()))
    gc.collect()
    before = float32_numbers()
    with in_dtype(model, torch.float32), torch.inference_mode():
        model.model(input_ids=IDS, use_cache=False)
    assert len(seen) == 2
    # 4 · 64² of attention, 3 · 64 · 128 of the MLP, two norms; the last norm is cast throughout.
    layer_numbers = 4 * 64**2 + 3 * 64 * 128 + 2 * 64
    assert sum(p.numel() for p in layers[0].parameters()) == layer_numbers
    # What runs in it: some rows of 24 tokens, of as many as 4 · 16 heads or 128 numbers each, in
    # all less than half a layer.
    assert all(layer_numbers < now - before < 1.5 * layer_numbers for now in seen)


def float32_numbers() -> int:
    """All that are in any tensor in memory: not in a compiler's fakes, or on no device."""
    kinds = (Tensor, torch.nn.Parameter)
    tensors = [
        t
        for t in gc.get_objects()
        if type(t) in kinds and t.dtype == torch.float32 and t.device.type == "cpu"
    ]
    return sum({t.data_ptr(): t.untyped_storage().nbytes() // 4 for t in tensors}.values())


ADAPTERS = {
    "all linear": lambda: peft.LoraConfig(r=4, target_modules="all-linear"),
    "dora": lambda: peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "parameters": lambda: peft.LoraConfig(
        r=4, target_modules=[], target_parameters=["mlp.up_proj.weight"]
    ),
    "embeddings": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
    "lm head": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
    "tokens": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 5]}
    ),
    "whole embeddings": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "norm"]
    ),
    "ia3": lambda: peft.IA3Config(
        target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, target_modules=["q_proj"]),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "v_proj"]),
}
SEGMENTS = [Segment(0, 5), Segment(5, 14, (0, 5)), Segment(14, 24)]


def hidden(policy: Policy) -> Tensor:
    assert policy.batching is Batching.PACKED
    return policy.hidden_packed(IDS[0] % 24, Layout(SEGMENTS))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_and_its_base_each_by_itself(kind: str, tmp_path: Path) -> None:
    base = make_policy_folder(tmp_path / "base", seed=0, dtype="bfloat16")
    adapter = make_adapter(tmp_path / "adapter", base, ADAPTERS[kind]())
    under = resolve("base", str(base))
    both = {"base": under, "rl": resolve_adapter("rl", str(adapter), base=under)}
    half, single = (load_policies(both, dtype=dtype) for dtype in ("bfloat16", "float32"))
    before = {name: trace(policy._model) for name, policy in half.items()}
    rounded = {name: hidden(policy) for name, policy in half.items()}
    for name, other in (("base", "rl"), ("rl", "base")):
        with half[name].in_float32():
            found = hidden(half[name])
            # The weights that they share are cast in one of them only.
            assert_same(half[other]._model, before[other])
        assert torch.equal(found, hidden(single[name]))
        for one, policy in half.items():
            assert_same(policy._model, before[one])
            assert torch.equal(hidden(policy), rounded[one])


def test_of_float32_states_and_half_a_head_no_product_is_rounded() -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(70, 256), torch.randn(3_000, 256)
    for dtype in (torch.bfloat16, torch.float16):
        half = weight.to(dtype)
        exact = states.double() @ half.double().T
        error, plain = (
            float((logits.double() - exact).square().mean().sqrt())
            for logits in (LmHead(half).logits(states), states @ half.float().T)
        )
        # That of float32 sums, whatever their order; of states in half precision it is a thousand
        # times as large.
        assert 0 < error < 3 * plain < 1e-4


def test_a_policy_that_is_tried_itself_is_tried_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "twin_of", lambda _model: None)
    monkeypatch.setattr(trial, "_found", {})
    folder = make_policy_folder(tmp_path, seed=0, dtype="bfloat16", max_position_embeddings=512)
    assert Policy.load(resolve("rl", str(folder))).batching is Batching.PADDED


class Kernels:
    """In place of kernels that this processor may not have: bfloat16 is all that they take."""

    @staticmethod
    def linear(rows: Tensor, weight: Tensor) -> Tensor:
        assert rows.dtype == weight.dtype == torch.bfloat16
        return rows @ weight.T


def test_layers_of_kernels_are_given_no_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "bfloat16_kernels", lambda: Kernels)
    monkeypatch.setattr(torch.ops, "dlogp_ray", Kernels)
    model = in_half("llama")
    expected = states_and_logits(copy.deepcopy(model).float())
    for layers in layer_lists(model):
        for layer in layers:
            linear.use_kernel(layer)
    assert isinstance(model.model.layers[0].mlp.up_proj, linear.KernelLinear)
    rounded = states_and_logits(model)
    with in_dtype(model, torch.float32, head=True):
        found = states_and_logits(model)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(states_and_logits(model), rounded, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_what_is_compiled_is_so_again(tmp_path: Path) -> None:
    folder = make_policy_folder(tmp_path, seed=0, dtype="bfloat16")
    half = Policy.load(resolve("rl", str(folder)))
    single = Policy.load(resolve("rl", str(folder)), dtype="float32")
    half.compile()
    rounded = hidden(half)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled > 0
    with half.in_float32():
        assert torch.equal(hidden(half), hidden(single))
    assert torch.equal(hidden(half), rounded)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
