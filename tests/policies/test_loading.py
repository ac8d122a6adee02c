"""Policies over several devices: what runs there is what runs on one."""

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from conftest import make_adapter, make_policy_folder

from dlogp_ray.errors import Refused
from dlogp_ray.policies.adapter_files import resolve_adapter
from dlogp_ray.policies.adapters import load_policies
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.layout import Layout, Past
from dlogp_ray.policies.loading import SPREAD, load_model
from dlogp_ray.policies.packing import Segment
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.split import Batching


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy_folder(tmp_path_factory.mktemp("spread") / "p", seed=3)


def hooked(folder: Path) -> Policy:
    """Every module behind the hooks that move tensors between devices, which are all one here."""
    model = load_model(resolve("p", str(folder)))
    blocks = ["embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb"]
    places = {f"model.{block}": "cpu" for block in blocks} | {"lm_head": "cpu"}
    model = dispatch_model(model, places, force_hooks=True)
    assert hasattr(model.model.layers[1], "_hf_hook")
    return Policy("p", model)


def test_a_policy_behind_hooks_is_packed_and_has_a_past_with_the_same_numbers(folder: Path) -> None:
    plain, spread = Policy.load(resolve("p", str(folder))), hooked(folder)
    assert spread.batching is plain.batching is Batching.PACKED
    ids = torch.arange(26).remainder(24)
    texts = [Segment(0, 4), Segment(4, 17, (0, 4)), Segment(17, 26, (0, 4))]
    assert torch.equal(
        spread.hidden_packed(ids, Layout(texts)), plain.hidden_packed(ids, Layout(texts))
    )
    assert torch.equal(spread.hidden(ids[None]), plain.hidden(ids[None]))
    past = Past(26)
    chunks = [
        spread.hidden_packed(chunk, Layout([Segment(0, len(chunk))], past, keep=True))
        for chunk in (ids[:10], ids[10:])
    ]
    # In two chunks instead of one: sums of the same float32 terms in another order.
    assert torch.allclose(torch.cat(chunks), plain.hidden(ids[None])[0], rtol=1e-4, atol=1e-5)


def test_a_device_map_loads_the_same_weights(folder: Path) -> None:
    checkpoint = resolve("p", str(folder))
    one, several = load_model(checkpoint), load_model(checkpoint, device_map=SPREAD)
    weights = dict(one.named_parameters())
    assert weights.keys() == dict(several.named_parameters()).keys()
    for name, weight in several.named_parameters():
        assert torch.equal(weight.cpu(), weights[name])
        assert not weight.requires_grad


def test_gpus_that_do_not_hold_a_policy_are_refused(folder: Path) -> None:
    with pytest.raises(Refused, match=r"do not hold it \(parts went to cpu\).*gpus_per_actor"):
        load_model(resolve("p", str(folder)), device="cuda", device_map={"": "cpu"})


def test_adapters_on_a_spread_base_are_refused(folder: Path, tmp_path: Path) -> None:
    base = resolve("base", str(folder))
    adapter = resolve_adapter("rl", str(make_adapter(tmp_path / "a", folder)), base=base)
    with pytest.raises(Refused, match="policy rl: adapters on a base that is spread"):
        load_policies({"base": base, "rl": adapter}, device_map=SPREAD)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_policy_over_two_gpus_has_the_numbers_of_one(folder: Path) -> None:
    checkpoint = resolve("p", str(folder))
    one = Policy.load(checkpoint, device="cuda")
    two = Policy.load(
        checkpoint, device="cuda", device_map={"": "cuda:0", "model.layers.1": "cuda:1"}
    )
    ids = torch.arange(20, device="cuda").remainder(24)[None]
    assert two.hidden(ids).device == one.hidden(ids).device
    assert torch.allclose(two.hidden(ids), one.hidden(ids), rtol=1e-5, atol=1e-5)
