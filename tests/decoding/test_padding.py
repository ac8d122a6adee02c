"""What ids tell of padding, and what a mask has to be."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlogp_ray.decoding.padding import Padding, SpecialIds, perhaps_padded, special_ids

BOS, EOS, PAD = 1, 2, 0
OF_ITS_OWN = SpecialIds(frozenset({PAD}), frozenset({BOS, EOS}))
IS_EOS = SpecialIds(frozenset({EOS}), frozenset({BOS, EOS}))
NOT_KNOWN = SpecialIds(frozenset(), frozenset({BOS, EOS}))
TEXTS = [[5, 6, 7], [8, 5, 6]]


@pytest.mark.parametrize(
    ("special", "rows", "padded"),
    [
        # A pad id that no text holds is padding wherever it stands, in one row too.
        (OF_ITS_OWN, [[PAD, 5, 6], [7, 5, 6]], True),
        (OF_ITS_OWN, [[PAD, PAD, 5]], True),
        (OF_ITS_OWN, [[5, 6, PAD], [5, 6, 7]], True),
        (OF_ITS_OWN, TEXTS, False),
        (OF_ITS_OWN, [[BOS, 5, 6], [BOS, 7, 8]], False),
        (OF_ITS_OWN, [[5, 5, 6], [7, 8, 9]], False),
        # One that ends texts: what all rows have alike is theirs.
        (IS_EOS, [[EOS, EOS, 5], [6, 7, 8]], True),
        (IS_EOS, [[EOS, 5, 6], [6, 7, EOS]], True),
        (IS_EOS, [[EOS, EOS, 5], [EOS, 6, 7]], True),
        (IS_EOS, [[EOS, 5, 6], [EOS, 7, 8]], False),
        (IS_EOS, [[5, EOS, 6], [7, 8, 9]], False),
        (IS_EOS, TEXTS, False),
        (IS_EOS, [[EOS, EOS, 5]], False),
        # Not known: texts that begin alike are not padded, and what stands inside of one is no pad.
        (NOT_KNOWN, [[EOS, 5, 6], [6, 7, 8]], True),
        (NOT_KNOWN, [[BOS, BOS, 5], [BOS, 6, 7]], True),
        (NOT_KNOWN, [[9, 9, BOS, 5], [BOS, 6, 7, 8]], True),
        (NOT_KNOWN, [[9, 5, 6], [7, 5, 6]], True),
        (NOT_KNOWN, [[BOS, 5, 6], [BOS, 7, 8]], False),
        (NOT_KNOWN, [[5, 6, 7], [5, 8, 9]], False),
        (NOT_KNOWN, [[5, 8, 7], [8, 5, 6]], False),
        (NOT_KNOWN, [[9, 9, 5]] * 4, False),
    ],
)
def test_a_batch_that_may_be_padded(
    special: SpecialIds, rows: list[list[int]], padded: bool
) -> None:
    assert bool(perhaps_padded(torch.tensor(rows), special)) is padded


def model(**config: object) -> SimpleNamespace:
    generation = SimpleNamespace(eos_token_id=[EOS, 4], pad_token_id=None)
    return SimpleNamespace(config=SimpleNamespace(**config), generation_config=generation)


def test_special_ids_are_those_of_both_configs() -> None:
    found = special_ids(model(pad_token_id=-1, bos_token_id=BOS, eos_token_id=EOS))
    assert found == SpecialIds(frozenset(), frozenset({BOS, EOS, 4}))
    assert special_ids(model(pad_token_id=PAD)).pads == {PAD}


PROMPTS = torch.tensor([[PAD, PAD, 5], [6, 7, 8]])
MASK = torch.tensor([[0, 0, 1], [1, 1, 1]])


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.tolist()], ids=["ids", "bool", "lists"])
def test_a_mask_is_of_each_prompt_s_copies(mask: Any) -> None:
    padding = Padding(model(pad_token_id=PAD), mask)
    assert padding.mask(PROMPTS).tolist() == MASK.tolist()
    copies = padding.mask(PROMPTS.repeat_interleave(3, 0))
    assert copies.tolist() == [[0, 0, 1]] * 3 + [[1, 1, 1]] * 3


@pytest.mark.parametrize(
    ("mask", "rows", "message"),
    [
        (MASK[0], PROMPTS, r"a row for each prompt.*mask \[3\] for rows \[2, 3\]"),
        (MASK[:, 1:], PROMPTS, r"as long as they.*mask \[2, 2\]"),
        (torch.ones(2, 4), PROMPTS, r"as long as they.*mask \[2, 4\]"),
        (torch.ones(3, 3), PROMPTS, r"a row for each prompt"),
        (torch.ones(0, 3), PROMPTS, r"a row for each prompt"),
        (MASK[None], PROMPTS, r"a row for each prompt"),
        (MASK[:1], PROMPTS, r"the prompts that the mask is of"),
        (MASK, PROMPTS.repeat(2, 1), r"the prompts that the mask is of"),
        (MASK, torch.tensor([[5, 6, 7], [6, 7, 8]]), r"the prompts that the mask is of"),
        (MASK.flip(1), PROMPTS.flip(1), r"padded on the left.*padding_side='left'"),
        (MASK, torch.empty(2, 0, dtype=torch.long), r"generate from input_ids"),
    ],
)
def test_another_mask_is_refused(mask: torch.Tensor, rows: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Padding(model(pad_token_id=PAD), mask).mask(rows)


def test_a_mask_serves_one_batch() -> None:
    padding = Padding(model(pad_token_id=PAD), MASK)
    for _ in range(2):
        padding.mask(PROMPTS)
    with pytest.raises(ValueError, match="serves one batch"):
        padding.mask(torch.tensor([[PAD, PAD, 5], [6, 7, 9]]))
    with pytest.raises(ValueError, match="as long as they"):
        padding.mask(torch.cat([PROMPTS, PROMPTS[:, -1:]], 1))
