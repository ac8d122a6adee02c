"""A causal language model as a body and an lm head, and the passes that texts can share.

Shapes: b sequences, s positions, t tokens of a row of texts, h hidden size, v vocabulary (rows of
the lm head).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dlogp_ray.errors import Refused
from dlogp_ray.policies.attention import RowPass, packed, register
from dlogp_ray.policies.casting import exact_products, in_dtype
from dlogp_ray.policies.lm_head import LmHead

ATTENTION_BYTES = 256 * 2**20
"""The most that the plain attention's weights of one layer may take."""


class Batching(IntEnum):
    """How the texts of a policy can share a forward pass; two policies share by the lesser."""

    ALONE = 0
    """Not at all: the positions' encoding, or the choice of what is attended to, depends on the
    length of the whole text."""
    PADDED = 1
    """As rows of one length, padded on the right: attention and recurrence look back only."""
    PACKED = 2
    """One after another in a single row, with shared prompts and a past."""


class Split:
    """A model's body and lm head apart, so that the head runs on response positions only.

    Args:
        name: Of the policy, for errors.
        model: A loaded ``AutoModelForCausalLM``.
        which: Which of ``bodies(model)``.

    Attributes:
        name: As given.
        model: As given.
        body: What ends in hidden states.
        lm_head: What follows.
    """

    def __init__(self, name: str, model: Any, which: int = 0) -> None:
        """Find both; nothing runs yet.

        Raises:
            Refused: It has no body apart from its lm head.
        """
        self.name = name
        self.model = model.eval()
        if getattr(_text_config(model), "attn_logit_softcapping", None):
            # Up to transformers 5.17 the default attention leaves the cap out without a word.
            model.set_attn_implementation("eager")
        of_model = bodies(model)
        if not of_model:
            raise Refused(f"policy {name}: {self.kind} has no body apart from its lm head")
        self.body = of_model[which]
        self.lm_head = _lm_head(model)
        self._heads = _heads(_text_config(model))
        self._in_float32 = False

    @property
    def kind(self) -> str:
        """The class of the model."""
        return type(self.model).__name__

    @property
    def device(self) -> torch.device:
        """Where ids go in and hidden states come out: all weights, or the first of several GPUs."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the first of the body's weights; others may be kept in float32 by the model."""
        weight: Tensor = next(self.body.parameters())
        return weight.dtype

    @torch.inference_mode()
    def whole(
        self, ids: Int[Tensor, "1 s"]
    ) -> tuple[Float[Tensor, "1 ..."], Float[Tensor, "1 s v"]]:
        """The model's own forward of one text: what its lm head was given, and the logits.

        Of a model that is fit, that is [1, s, h].
        """
        given: list[Tensor] = []
        handle = self.model.get_output_embeddings().register_forward_pre_hook(
            lambda _module, args: given.append(args[0])
        )
        try:
            logits = self.model(input_ids=ids, use_cache=False).logits
        finally:
            handle.remove()
        return given[0].to(self.device), logits.float().to(self.device)

    @torch.inference_mode()
    def alone(self, ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s h"]:
        """The body's last hidden states of texts of one length, as if nothing had run before."""
        with self._attention(ids):
            # "Dynamic" encodings stay those of the longest text until a short one comes.
            self.body(input_ids=ids[:, :1], use_cache=False)
            return self._run(ids)

    @torch.inference_mode()
    def padded(self, ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s h"]:
        """The same of texts that are padded on the right.

        Attention is causal, so that no real position sees the padding and no mask is needed.
        """
        with self._attention(ids):
            return self._run(ids)

    @torch.inference_mode()
    def packed(self, ids: Int[Tensor, " t"], row_pass: RowPass) -> Float[Tensor, "t h"]:
        """The same of a row of texts, once the model attends in rows."""
        with packed(row_pass):
            hidden = self._run(
                ids[None],
                # All ones, so that the models' own search for packed texts keeps out of the way.
                attention_mask=torch.ones_like(ids)[None],
                position_ids=row_pass.positions(ids.device)[None],
            )
        return hidden[0]

    @contextmanager
    def in_float32(self, *, whole: bool = False) -> Iterator[None]:
        """Inside, hidden states are those of the same weights in float32, and stay so.

        Args:
            whole: Whether the whole model is to run too, which takes a float32 lm head's memory.
        """
        self._in_float32 = True
        try:
            with exact_products(), in_dtype(self.model, torch.float32, head=whole):
                yield
        finally:
            self._in_float32 = False

    def attend_in_rows(self) -> None:
        """From now on, only ``packed`` runs.

        Raises:
            ValueError: The model takes no attention from an interface.
        """
        self.model.set_attn_implementation(register())

    def _run(self, ids: Tensor, **inputs: Tensor) -> Tensor:
        out = self.body(input_ids=ids, use_cache=False, **inputs)
        hidden: Tensor = out.last_hidden_state.to(self.device)
        # Where the residual stream is float32 (Mamba), the model rounds it for its head. A head in
        # float32 (of an adapter) takes whatever comes.
        dtype = self.lm_head.weight.dtype
        return hidden if self._in_float32 or dtype == torch.float32 else hidden.to(dtype)

    def _attention(self, ids: Tensor) -> AbstractContextManager[None]:
        """Torch's plain attention where it is the exact one and fits; else its own choice.

        In float32 on a CPU, the fused kernel's exponential is good to about 20 bits: on the demo
        pair's 87,029 tokens, other batches moved KL by up to 1.7e-5 nats with it and by 2.6e-6
        without. The plain one holds all attention weights of a layer.
        """
        weights_bytes = 4 * ids.numel() * ids.shape[1] * self._heads
        float32 = self._in_float32 or next(self.body.parameters()).dtype == torch.float32
        if self.device.type == "cpu" and float32 and weights_bytes <= ATTENTION_BYTES:
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()


def _text_config(model: Any) -> Any:
    return model.config.get_text_config()


def _heads(config: Any) -> int:
    """Query heads of a layer, the most where layers differ."""
    try:
        heads = getattr(config, "num_attention_heads", None) or 1
    except RuntimeError:  # what transformers raises where they differ
        heads = max(layer.num_attention_heads for layer in config.per_layer_config)
    return int(heads)


def bodies(model: Any) -> list[Any]:
    """What may be all that comes before the lm head, the least first.

    ``get_decoder`` finds it in most models. In some that is the head, or the whole model; in some
    the model around it does more, such as to take another embedding for ids that stand for images.
    """
    from transformers import PreTrainedModel

    decoder = model.get_decoder()
    candidates: list[Any] = []
    for candidate in (decoder, getattr(decoder, "model", None), model.base_model):
        bare = isinstance(candidate, PreTrainedModel) and candidate.get_output_embeddings() is None
        if bare and not any(candidate is other for other in candidates):
            candidates.append(candidate)
    return candidates


def _lm_head(model: Any) -> LmHead:
    layer = model.get_output_embeddings()
    config = _text_config(model)
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= getattr(config, name, None) or 1.0
    if divisor := getattr(config, "logits_scaling", None):
        scale /= divisor
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    softcap = next((cap for name in names if (cap := getattr(config, name, None))), None)
    # The heads of all policies meet in one place, where the statistics are made.
    home = model.get_input_embeddings().weight.device
    bias = getattr(layer, "bias", None)
    width = getattr(config, "unpadded_vocab_size", None)  # Inkling leaves the other rows out
    return LmHead(
        weight=layer.weight.detach()[:width].to(home),
        bias=bias.detach()[:width].to(home) if bias is not None else None,
        scale=float(scale),
        softcap=softcap,
    )
