"""Which tokens of a batch are padding, for whoever is handed their ids alone.

A pad that a model attends to changes its probabilities without an error. Where a model has a pad id
that no text holds, ids tell; where that ends or begins texts too, or is not known, they can't
always, and what might be padding is refused until a mask says what it is.

Shapes: b prompts of p tokens, padded on the left; r rows of t tokens that grow from them, each
prompt as often as ``generate`` repeats it, one copy after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class SpecialIds:
    """What a model says of ids that a row may begin with.

    Attributes:
        pads: Its pad ids; none where it is not known.
        marks: Ids that begin or end texts.
    """

    pads: frozenset[int]
    marks: frozenset[int]


def special_ids(model: Any) -> SpecialIds:
    """By both configs of a model of transformers."""

    def ids(*names: str) -> frozenset[int]:
        configs = (model.config, getattr(model, "generation_config", None))
        values = [getattr(config, name, None) for config in configs for name in names]
        flat = [token for v in values for token in (v if isinstance(v, list) else [v])]
        return frozenset(token for token in flat if token is not None and token >= 0)

    return SpecialIds(ids("pad_token_id"), ids("bos_token_id", "eos_token_id"))


def perhaps_padded(ids: Int[Tensor, "r t"], special: SpecialIds) -> str | None:
    """Why prompts may be padded; None where they are not.

    A pad id that is no mark is padding wherever it stands. A mark that rows begin with is their
    texts' own where all of them have as many. Where no pad id is known, any id may be one that some
    rows begin with and others don't, and that stands nowhere else. What ids can't tell is a batch
    whose rows all have as many pads, of an id that is a mark or not known.
    """
    for pad in special.pads - special.marks:
        if (ids == pad).any():
            return f"the pad id {pad} is among them"
    for head in sorted(set(ids[:, 0].tolist())):
        there = ids == head
        leading = there.long().cumprod(1).sum(1)
        if (leading == leading[0]).all():
            continue
        if head in special.marks:
            return f"some rows begin with the id {head}, which is padding or their texts' own"
        if not special.pads and there.sum() == leading.sum():
            return f"some rows begin with the id {head}, and the model's config names no pad id"
    return None


class Padding:
    """Tells the padding of a batch from its tokens.

    Args:
        model: A model of transformers that is to read them.
        given: [b, p] the prompts' mask, 0 where there is padding, as a tensor or lists; None where
            there is none.
    """

    def __init__(
        self, model: Any, given: Shaped[Tensor, "..."] | Sequence[Sequence[int]] | None
    ) -> None:
        """Nothing is looked at before the rows are there."""
        self._special = special_ids(model)
        self._given = None if given is None else torch.as_tensor(given)
        self._prompts: Tensor | None = None

    def mask(self, ids: Int[Tensor, "r p"]) -> Int[Tensor, "r p"]:
        """Of prompts with which ``generate`` begins: 0 where there is padding, else 1.

        Raises:
            ValueError: They may be padded and there is no mask, or it is others' mask.
        """
        if not ids.shape[1]:
            raise ValueError("expected prompts of token ids, got none: generate from input_ids")
        if self._given is not None:
            return self._rows_of(self._given.to(ids.device), ids)
        if reason := perhaps_padded(ids, self._special):
            raise ValueError(
                f"expected prompts without padding, or their mask: {reason}, and generate hands a "
                "processor ids alone. Give it attention_mask= too: the tokenizer's, with "
                "padding_side='left'; or all ones, where nothing is padding"
            )
        return torch.ones_like(ids)

    def _rows_of(self, mask: Tensor, ids: Tensor) -> Tensor:
        got = f"got a mask {list(mask.shape)} for rows {list(ids.shape)}"
        if mask.ndim != 2 or not len(mask) or len(ids) % len(mask) or mask.shape[1] != ids.shape[1]:
            raise ValueError(f"expected a mask with a row for each prompt, as long as they, {got}")
        if not mask[:, -1].all():
            raise ValueError(
                "expected prompts padded on the left, got a mask that ends with 0; tokenize with "
                "padding_side='left'"
            )
        copies = len(ids) // len(mask)
        prompts = ids[::copies]
        if self._prompts is None:
            self._prompts = prompts
        same = torch.equal(prompts, self._prompts)
        repeated = torch.equal(ids, prompts.repeat_interleave(copies, 0))
        if not (same and repeated and len(set(prompts[mask == 0].tolist())) <= 1):
            raise ValueError(
                "expected the prompts that the mask is of, got others: a processor with a mask "
                "serves one batch; make one for each"
            )
        return (mask != 0).long().repeat_interleave(copies, 0)
