"""The shipped adapter: what inference needs and nothing else, and a record that holds together."""

import json
import math

import torch
from safetensors.torch import load_file

from dlogp_ray.demo.smollm2.base import WHEEL
from dlogp_ray.demo.smollm2.pair import accuracies, adapter_path
from dlogp_ray.demo.smollm2.recipe import Recipe
from dlogp_ray.demo.smollm2.task import TEMPERATURE


def test_the_folder_holds_an_adapter_and_its_record() -> None:
    files = {path.name: path.stat().st_size for path in adapter_path().iterdir()}
    assert files.keys() == {"adapter_config.json", "adapter_model.safetensors", "accuracies.json"}
    assert sum(files.values()) < 6_000_000
    config = json.loads((adapter_path() / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == WHEEL
    assert config["r"] == Recipe().rank
    weights = load_file(adapter_path() / "adapter_model.safetensors")
    # Seven linear layers in each of 30, two factors each.
    assert len(weights) == 30 * 7 * 2
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_the_record_is_of_this_recipe_and_rl_has_helped() -> None:
    record = accuracies()
    assert Recipe(**record["recipe"]) == Recipe()
    assert record["base"] == WHEEL
    assert record["temperature"] == TEMPERATURE
    assert len(record["training_rewards"]) == Recipe().steps
    base, rl = record["policies"]["base"], record["policies"]["rlvr"]
    assert 0.3 < base["accuracy"] < 0.7  # a task that it half solves
    error = math.hypot(base["standard_error"], rl["standard_error"])
    assert rl["accuracy"] > base["accuracy"] + 4 * error
