"""The LogitsProcessor inside of ``generate``: the same distribution as the paired loop."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_policy_folder
from scipy import stats
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor

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
    [
        SELECTIVE,
        pytest.param(Intervention("random", 0.4), marks=pytest.mark.slow),
        pytest.param(Intervention("kl", 0.05, "rl", gamma=0.5), marks=pytest.mark.slow),
    ],
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


class Recorded(LogitsProcessor):
    """What a processor was handed and gave."""

    def __init__(self, processor: ExtrapolationLogitsProcessor) -> None:
        self.processor = processor
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: Any, scores: Any) -> torch.Tensor:
        found = self.processor(input_ids, scores)
        self.calls.append((input_ids, scores, found))
        return found


PADDED = torch.tensor([[0, 0, 0, 3], [3, 1, 2, 3], [0, 1, 3, 2]])
MASK = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1]])


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 4},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 3},
    ],
    ids=["alone", "samples", "beams", "sampled beams"],
)
def test_every_row_that_generate_asks_for_is_as_its_prompt_alone(
    models: tuple[Any, Any], how: dict[str, Any]
) -> None:
    """Against a plain forward without pads, masks or a cache."""
    base, rl = models
    processor = Recorded(ExtrapolationLogitsProcessor(rl, SELECTIVE, attention_mask=MASK))
    for _ in range(2):  # of one batch as often as one likes
        generate(base, processor, PADDED, 6, attention_mask=MASK, top_k=0, **how)
    rows = {len(ids) for ids, _, _ in processor.calls}
    assert rows == {3 * how.get("num_beams", how.get("num_return_sequences", 1))}
    assert len(processor.calls) == 12
    if "num_beams" in how:  # which move rows
        calls = pairwise(ids for ids, _, _ in processor.calls[:6])
        assert any(not torch.equal(after[:, :-1], before) for before, after in calls)
    for ids, scores, found in processor.calls:
        starts = (MASK == 0).sum(1).repeat_interleave(len(ids) // 3)
        for row, start in enumerate(starts.tolist()):
            with torch.inference_mode():
                logits = rl(ids[row : row + 1, start:]).logits[:, -1].float()
            expected = next_token_distribution(
                SELECTIVE,
                Distribution(scores[row : row + 1].float()),
                Distribution(logits),
                Sampling(),
            )
            torch.testing.assert_close(
                found[row : row + 1].exp().double(), expected, atol=1e-6, rtol=0
            )


def test_padded_prompts_without_a_mask_are_refused(models: tuple[Any, Any]) -> None:
    base, rl = models
    processor = ExtrapolationLogitsProcessor(rl, SELECTIVE)
    generate(base, processor, PADDED[1:2], 3)
    with pytest.raises(ValueError, match=r"some rows begin with the id 0.*attention_mask= too"):
        generate(base, processor, PADDED, 3, attention_mask=MASK)
    rl.config.pad_token_id = 0
    try:
        processor = ExtrapolationLogitsProcessor(rl, SELECTIVE)
        with pytest.raises(ValueError, match=r"the pad id 0 is among them.*attention_mask= too"):
            generate(base, processor, PADDED[:1], 3, attention_mask=MASK[:1])
        # What has ended is filled with pads, and they are no prompts.
        base.generation_config.eos_token_id = 1
        ids = torch.tensor([[3, 2], [3, 3]]).repeat(20, 1)
        config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=9, pad_token_id=0)
        out = base.generate(ids, generation_config=config, logits_processor=[processor])
        ended = (out == 1).any(1)
        assert 0 < ended.sum() < len(out)
        assert (out[ended][:, -1] == 0).any()
    finally:
        rl.config.pad_token_id = None


def test_a_mask_of_other_prompts_is_refused(models: tuple[Any, Any]) -> None:
    base, rl = models
    processor = ExtrapolationLogitsProcessor(rl, SELECTIVE, attention_mask=MASK)
    with pytest.raises(ValueError, match="a row for each prompt, as long as they"):
        generate(base, processor, PADDED[:, 1:], 3, attention_mask=MASK[:, 1:])
    generate(base, processor, PADDED, 3, attention_mask=MASK)
    others = torch.where(MASK == 1, (PADDED + 1) % 3 + 1, PADDED)
    with pytest.raises(ValueError, match="serves one batch"):
        generate(base, processor, others, 3, attention_mask=MASK)


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
