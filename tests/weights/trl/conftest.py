"""A tiny policy, rollouts of it, and what its tokens' log-probabilities are by transformers."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # TRL 1.16 passes transformers an argument that transformers 5 has renamed.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@pytest.fixture
def model(policy_folders: dict[str, Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(policy_folders["base"], dtype=torch.float32)


@pytest.fixture
def tokenizer(policy_folders: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(policy_folders["base"])


@pytest.fixture
def rollouts() -> list[dict[str, Any]]:
    """Two prompts with two responses each, of lengths 4, 2, 3 and 5; one is right."""
    return [
        {
            "sample_id": f"{group}/{index}",
            "group_id": group,
            "prompt_ids": prompt,
            "response_ids": response,
            "reward": reward,
        }
        for group, prompt, some in [
            ("a", [5, 6, 7], [([8, 9, 2, 1], 1.0), ([3, 1], 0.0)]),
            ("b", [4, 9], [([11, 12, 1], 0.0), ([2, 2, 3, 4, 1], 1.0)]),
        ]
        for index, (response, reward) in enumerate(some)
    ]
