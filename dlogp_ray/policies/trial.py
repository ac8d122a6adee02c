"""How the texts of an architecture can share a pass, found by trying it.

What is tried is a small twin (``twin``), in float32 whatever the policy's dtype: a leak from one
text into another shows there as what it is, and hides among roundings in half precision. Then the
twin runs once in the policy's dtypes, for some models can't beyond a limit. Where no twin can be
built it is the policy itself, on texts as long as time allows. The texts hold every id of the twin,
so that one that is special to the model (a padding id that it counts) is among them.
"""

import copy
import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlogp_ray.errors import Refused
from dlogp_ray.policies.casting import exact_products
from dlogp_ray.policies.sharing import (
    FAILURES,
    PROMPT,
    ROUNDED,
    OtherLogits,
    Unfit,
    best_batching,
    check_logits,
    said,
)
from dlogp_ray.policies.split import Batching, Split, bodies
from dlogp_ray.policies.twin import FIRST_LIMIT, TEXT, VOCABULARY, Twin, twin_of

_OWN_S = 0.25
"""Seconds of one text, where the policy itself is tried: a trial runs some twenty."""
_OWN_TEXT = 256
"""Tokens of the text that a policy runs in its own dtype where its twin can't: a chunk or more."""
_SAYS_NOTHING = {"_name_or_path", "dtype", "torch_dtype", "transformers_version"}
"""Of a config, about how its model computes."""


@dataclass(frozen=True)
class Trial:
    """What a trial found.

    Attributes:
        batching: How texts can share a pass.
        reach: Tokens of the longest texts of which that is known; longer ones run alone.
        longest: Tokens of the longest text that the model has positions for.
        body: Which of ``split.bodies`` is what comes before the lm head.
    """

    batching: Batching
    reach: int = sys.maxsize
    longest: int = sys.maxsize
    body: int = 0


_found: dict[tuple[type, str, str | None, torch.device, torch.dtype], Trial | Unfit] = {}


def find_batching(split: Split) -> Trial:
    """Try the architecture of a loaded policy; once for all policies of one.

    Raises:
        Refused: The model can't be run as a body and an lm head, or its forward looks ahead or
            does not repeat itself.
    """
    config = split.model.config
    values = {k: v for k, v in config.to_dict().items() if k not in _SAYS_NOTHING}
    said = json.dumps(values, sort_keys=True, default=str)
    key = type(split.model), said, config._attn_implementation, split.device, split.dtype
    if key not in _found:
        try:
            _found[key] = _find(split)
        except Unfit as reason:
            _found[key] = reason
    known = _found[key]
    if isinstance(known, Unfit):
        raise Refused(f"policy {split.name}: {split.kind} {known}")
    return known


def context_of(config: Any) -> int:
    """Tokens of the longest text, as a config says."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else sys.maxsize  # XLNet says -1


def _find(split: Split) -> Trial:
    """With the first body that the logits come from."""
    with _one_thread():
        twin = twin_of(split.model)
    candidates = len(bodies(split.model))
    for body in range(candidates):
        try:
            if twin is None:
                return _try_itself(Split(split.name, split.model, body), body)
            with _one_thread():
                return _try_twin(split, twin, body)
        except OtherLogits:
            if body + 1 == candidates:
                raise
    raise AssertionError("a split has a body")


def _try_twin(split: Split, twin: Twin, body: int) -> Trial:
    model = twin.model.to(split.device)
    ids = torch.randperm(model.get_input_embeddings().weight.shape[0], generator=_seeded())
    texts = _texts(ids.repeat(-(-VOCABULARY // len(ids)))[:VOCABULARY], TEXT)
    with exact_products():
        batching = best_batching(
            lambda: Split(split.name, copy.deepcopy(model), body), texts, may_pack=True
        )
    longest = twin.longest or sys.maxsize
    _check_dtypes(split, model, texts[0], longest)
    if twin.unseen is None:
        return Trial(batching, longest=longest, body=body)
    # A row of several texts may be longer than what was seen, whatever its texts are.
    return Trial(min(batching, Batching.PADDED), twin.unseen - 1, longest, body)


def _check_dtypes(split: Split, twin: Any, text: Tensor, longest: int) -> None:
    """Run a twin in the dtypes that the policy's weights have, and the policy where that fails.

    A twin may fail by its widths alone: torch multiplies experts in half precision only where
    their rows are of so many bytes.

    Raises:
        Unfit: Neither can be run, such as xLSTM in half precision from its chunk size on.
    """
    if split.dtype == torch.float32:
        return
    model = copy.deepcopy(twin)
    held = dict(itertools.chain(split.model.named_parameters(), split.model.named_buffers()))
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if name in held:
            tensor.data = tensor.to(held[name].dtype)
        elif isinstance(tensor, torch.nn.Parameter):  # of a layer that an adapter wraps
            tensor.data = tensor.to(split.dtype)
    text = text[None].to(split.device)
    with suppress(*FAILURES), torch.inference_mode():
        for length in (FIRST_LIMIT, TEXT):  # torch runs batched products of few in another way
            model(input_ids=text[:, :length], use_cache=False)
        return
    try:
        split.whole(text.repeat(1, -(-_OWN_TEXT // TEXT))[:, : min(_OWN_TEXT, longest)])
    except FAILURES as error:
        dtype = str(split.dtype).removeprefix("torch.")
        raise Unfit(f"can't be run in {dtype}: {said(error)}") from error


def _try_itself(split: Split, body: int) -> Trial:
    """Short texts decide for texts as short, and never for a row of several."""
    ids = torch.randint(split.lm_head.width, (5 * TEXT,), generator=_seeded())
    special = [i for i in _special_ids(split.model.config) if i < split.lm_head.width]
    ids[PROMPT : PROMPT + len(special)] = torch.tensor(special, dtype=ids.dtype)
    with split.in_float32(whole=True):
        started = time.monotonic()
        split.whole(ids[None, :TEXT].to(split.device))
        spare = _OWN_S / (time.monotonic() - started)
        longest = TEXT * max(1, min(4, int(spare)))
        texts = _texts(ids[: longest + longest // 2], longest)
        batching = best_batching(lambda: split, texts, may_pack=False)
    return Trial(batching, longest, context_of(split.model.config), body)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _special_ids(config: Any) -> list[int]:
    """Of the config, whatever they are for."""
    values = config.to_dict()
    values |= values.get("text_config") or {}
    named = [v for k, v in values.items() if k.endswith(("token_id", "_index"))]
    return sorted({i for v in named for i in (v if isinstance(v, list) else [v]) if type(i) is int})


def _texts(ids: Tensor, longest: int) -> list[Tensor]:
    """Three texts that hold all ids; the first two share a prompt, and the first repeats some."""
    again = longest // 3
    long = torch.cat([ids[: longest - again], ids[5 : 5 + again]])
    rest = ids[longest - again :]
    return [long, torch.cat([long[:PROMPT], rest[:9]]), rest]


@contextmanager
def _one_thread() -> Iterator[None]:
    """A twin's products are small: beside other work, two threads took 14 s in place of 0.6."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_weights(split: Split) -> None:
    """Run a loaded policy itself, in its own dtype.

    Raises:
        Refused: It can't be run, or its logits are not those of its lm head.
    """
    ids = torch.arange(8, device=split.device).remainder(split.lm_head.width)
    try:  # in half precision the model rounds its logits
        check_logits(split, ids, max(ROUNDED, 4 * torch.finfo(split.dtype).eps))
    except Unfit as reason:
        raise Refused(f"policy {split.name}: {split.kind} {reason}") from None
    except FAILURES as error:
        raise Refused(f"policy {split.name}: {split.kind} can't be run: {said(error)}") from error
