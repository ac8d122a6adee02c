"""The LogitsProcessor inside of ``generate``: the same distribution as the paired loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_policy_folder
from scipy import stats
from transformers import AutoModelForCausalLM, GenerationConfig

from dlogp_ray.decoding.batch import Prompt
from dlogp_ray.decoding.distribution import Distribution, Sampling
from dlogp_ray.decoding.loop import PairedDecoder
from dlogp_ray.decoding.mixture import next_token_distribution
from dlogp_ray.decoding.processor import ExtrapolationLogitsProcessor
from dlogp_ray.decoding.rules import Intervention
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Policy

SELECTIVE = Intervention("delta_logp", -0.3, gamma=0.5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [
        make_policy_folder(root / name, seed, vocab_size=4, hidden_size=16)
        for name, seed in (("base", 3), ("rl", 4))
    ]


@pytest.fixture(scope="module")
def models(folders: list[Path]) -> tuple[Any, Any]:
    base, rl = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    return base, rl


def generate(model: Any, processor: Any, ids: torch.Tensor, n: int, **kwargs: Any) -> np.ndarray:
    torch.manual_seed(0)
    model.generation_config.eos_token_id = None  # texts of n tokens, whatever they are
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=n, pad_token_id=0)
    out = model.generate(ids, generation_config=config, logits_processor=[processor], **kwargs)
    texts: np.ndarray = out[:, ids.shape[1] :].numpy()
    return texts


@pytest.mark.parametrize("n", [5_000, pytest.param(50_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "intervention",
    [SELECTIVE, Intervention("random", 0.4), Intervention("kl", 0.05, "rl", gamma=0.5)],
    ids=["selective", "random", "rl-anchored"],
)
def test_generate_and_the_loop_give_texts_of_one_distribution(
    models: tuple[Any, Any], folders: list[Path], intervention: Intervention, n: int
) -> None:
    """So many texts of three tokens each: the 64 counts, chi-square of two samples."""
    sampling = Sampling(temperature=0.9, top_p=0.95)
    base, rl = models
    mine, other = (base, rl) if intervention.primary == "base" else (rl, base)
    processor = ExtrapolationLogitsProcessor(other, intervention, sampling)
    ids = torch.tensor([[2, 3]]).expand(n, 2)
    found = generate(mine, processor, ids, 3)
    policies = (Policy.load(resolve(folder.name, str(folder))) for folder in folders)
    decoder = PairedDecoder(*policies, sampling=sampling, max_tokens=3, rows=1_000)
    answers = decoder.decode(Prompt(f"p{i}", [2, 3], (intervention,)) for i in range(n))
    ours = np.array([answer.ids for answer in answers])
    counts = np.array([np.bincount(texts @ [16, 4, 1], minlength=64) for texts in (found, ours)])
    assert stats.chi2_contingency(counts[:, counts.sum(0) > 0]).pvalue > 1e-4


def test_left_padded_prompts_are_as_each_alone(models: tuple[Any, Any]) -> None:
    _base, rl = models
    ids = torch.tensor([[0, 0, 2], [3, 1, 2]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    processor = ExtrapolationLogitsProcessor(rl, SELECTIVE, attention_mask=mask)
    scores = torch.zeros(2, 4)
    together = processor(ids, scores)
    grown = processor(torch.cat([ids, torch.tensor([[1], [3]])], 1), scores)
    for row, prompt in enumerate(([2], [3, 1, 2])):
        alone = ExtrapolationLogitsProcessor(rl, SELECTIVE)
        torch.testing.assert_close(
            together[row : row + 1], alone(torch.tensor([prompt]), scores[:1])
        )
        longer = torch.tensor([[*prompt, [1, 3][row]]])
        torch.testing.assert_close(grown[row : row + 1], alone(longer, scores[:1]))


def test_one_processor_serves_one_generation_after_another(models: tuple[Any, Any]) -> None:
    _base, rl = models
    processor = ExtrapolationLogitsProcessor(rl, SELECTIVE)
    scores = torch.randn(1, 4)
    for text in ([2, 3, 1], [3, 3], [3, 3, 2], [1, 1, 1, 1]):
        fresh = ExtrapolationLogitsProcessor(rl, SELECTIVE)(torch.tensor([text]), scores)
        torch.testing.assert_close(processor(torch.tensor([text]), scores), fresh)
    with torch.inference_mode():
        logits = rl(torch.tensor([[1, 1, 1, 1]])).logits[:, -1].float()
    expected = next_token_distribution(
        SELECTIVE, Distribution(scores), Distribution(logits), Sampling()
    )
    torch.testing.assert_close(fresh.exp().double(), expected, atol=1e-6, rtol=0)


def test_models_of_other_vocabularies_are_refused(tmp_path: Path, models: tuple[Any, Any]) -> None:
    other = AutoModelForCausalLM.from_pretrained(make_policy_folder(tmp_path, 0, vocab_size=5))
    processor = ExtrapolationLogitsProcessor(other, SELECTIVE)
    with pytest.raises(ValueError, match="one vocabulary, got 4 and 5 ids"):
        generate(models[0], processor, torch.tensor([[2, 3]]), 2)
