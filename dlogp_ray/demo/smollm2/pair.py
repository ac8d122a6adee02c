"""The two policies: the model that is fetched, and the adapter that ships; samples of both."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from dlogp_ray.demo.pair import ACCURACIES_FILE, BASE_NAME
from dlogp_ray.demo.smollm2.task import MAX_RESPONSE_TOKENS, TEMPERATURE, held_out_problems

ADAPTER = "adapter"
RL_NAME = "rlvr"


def adapter_path() -> Path:
    """The folder of the shipped adapter."""
    return Path(str(resources.files("dlogp_ray.demo.smollm2") / ADAPTER))


def accuracies() -> dict[str, Any]:
    """The record that the recipe wrote beside the adapter: `policies`, recipe, versions.

    `policies` maps `base` and `rlvr` to the accuracy on held-out problems with its standard error
    over pairs of numbers, the number of problems, and the mean response length in tokens.
    """
    record: dict[str, Any] = json.loads((adapter_path() / ACCURACIES_FILE).read_text())
    return record


def sample(name: str, base: Path, adapter: Path, problems: int, seed: int) -> list[dict[str, Any]]:
    """One response of a policy to each of some held-out problems, with its reward.

    Args:
        name: `base` or `rlvr`; the rows' `generator`.
        base: The base's checkpoint; it computes in float32.
        adapter: The adapter's folder; only `rlvr` has it.
        problems: How many.
        seed: Of the problems and of the draws.

    Returns:
        Rows as `sampling.sample_corpus` has them, with the problem's `answer` and `pair` of
        numbers ("4+9", the smaller one first).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dlogp_ray.demo.sampling import sample_policy

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if name != BASE_NAME:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    chosen = held_out_problems(problems, seed)
    rows = sample_policy(
        model.eval(),
        AutoTokenizer.from_pretrained(base),
        name,
        chosen,
        1,
        seed,
        temperature=TEMPERATURE,
        max_tokens=MAX_RESPONSE_TOKENS,
    )
    return [
        row | {"answer": problem.answer, "pair": problem.pair}
        for row, problem in zip(rows, chosen, strict=True)
    ]
