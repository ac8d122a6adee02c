"""One loaded policy: token ids -> hidden states -> float32 logits.

A causal language model is split into its body and its lm head, so that the head runs on response
positions only. Whether ``logits = head(body(ids))`` really holds for an architecture is tried out
when it is loaded; one for which it does not is refused by name.

Shapes: b sequences, s positions, n rows, h hidden size, v vocabulary (rows of the lm head).
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dlogp_ray.errors import Refused
from dlogp_ray.policies.attention import RowPass, packed, register
from dlogp_ray.policies.checkpoint import Checkpoint
from dlogp_ray.policies.compiling import compile_layers
from dlogp_ray.policies.layout import Layout, Past, Segment
from dlogp_ray.policies.linear import use_kernel
from dlogp_ray.policies.lm_head import LmHead
from dlogp_ray.policies.loading import load_model

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


class Policy:
    """A language model ready for scoring.

    Attributes:
        name: Its name in the job.
        lm_head: Its last layer, for ``statistics``.
        batching: How its texts can share a forward pass.
        compiled: Whether ``compile`` was called.
    """

    def __init__(self, name: str, model: Any) -> None:
        """Take a loaded ``AutoModelForCausalLM``.

        Raises:
            Refused: The architecture does something between body and logits that is not known
                here, or a weight is not finite.
        """
        self.name = name
        self.compiled = False
        self._model = model.eval()
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
            # Up to transformers 5.17 the default attention leaves the cap out without a word.
            model.set_attn_implementation("eager")
        self._body = _body(name, model)
        self.lm_head = _lm_head(model)
        self._heads = getattr(model.config.get_text_config(), "num_attention_heads", 1)
        _check_finite(name, model)
        self.batching = Batching.PADDED
        self._check_split()
        self.batching = self._find_batching()

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        **options: Any,
    ) -> "Policy":
        """Load the checkpoint's weights.

        Args:
            checkpoint: Where they are.
            options: Of ``load_model``.

        Raises:
            Refused: ``load_model`` or ``__init__`` refuses them.
        """
        return cls(checkpoint.name, load_model(checkpoint, **options))

    @property
    def device(self) -> torch.device:
        """Where ids go in and hidden states come out: all weights, or the first of several GPUs."""
        return self.lm_head.weight.device

    @property
    def context(self) -> int:
        """Tokens of the longest text, as the checkpoint's config says."""
        most = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return most or sys.maxsize

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names and weights of the whole model."""
        yield from self._model.named_parameters()

    @torch.inference_mode()
    def hidden(self, ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s h"]:
        """The body's last hidden states.

        Sequences are padded on the right: attention is causal, so that no real position sees the
        padding and no mask is needed.
        """
        if self.batching is Batching.PACKED:  # beside a policy that can't be packed
            rows, length = ids.shape
            alone = [Segment(start, start + length) for start in range(0, rows * length, length)]
            return self.hidden_packed(ids.flatten(), Layout(alone)).view(rows, length, -1)
        with self._attention(ids):
            if self.batching is Batching.ALONE:
                # "Dynamic" encodings stay those of the longest text until a short one comes.
                self._body(input_ids=ids[:, :1], use_cache=False)
            out = self._body(input_ids=ids, use_cache=False)
        return out.last_hidden_state.to(self.device)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def hidden_packed(self, ids: Int[Tensor, " t"], row_pass: RowPass) -> Float[Tensor, "t h"]:
        """The body's last hidden states over a packed row; only where ``batching`` is PACKED."""
        row_pass.compiled = self.compiled
        with packed(row_pass):
            out = self._body(
                input_ids=ids[None],
                # All ones, so that the models' own search for packed texts keeps out of the way.
                attention_mask=torch.ones_like(ids)[None],
                position_ids=row_pass.positions(ids.device)[None],
                use_cache=False,
            )
        return out.last_hidden_state[0].to(self.device)  # type: ignore[no-any-return]

    def compile(self) -> None:
        """Compile the decoder's layers (about 15 s), which are alike: one compilation for all."""
        self.compiled = True
        layers = _decoder_layers(self._body)
        for layer in layers:
            use_kernel(layer)
        compile_layers(layers)

    @torch.inference_mode()
    def _find_batching(self) -> Batching:
        """Try whether packed texts, a shared prompt and a past give what separate texts give."""
        config = self._model.config.get_text_config()
        if _length_dependent_positions(config) or _chooses_what_it_attends_to(self._body):
            return Batching.ALONE
        if getattr(config, "attn_temperature_tuning", False):
            # Llama 4 scales queries by their place in the row, from the 8,192nd token on: packing
            # would go wrong there, and the short texts below can't show it.
            return Batching.PADDED
        width = self.lm_head.width
        prompt, one, two = (
            (torch.arange(n, device=self.device) * 7 + n).remainder(width) for n in (3, 6, 4)
        )
        wanted = [self.hidden(torch.cat([prompt, rest])[None])[0] for rest in (one, two)]
        if not _about_equal(*(hidden[: len(prompt)] for hidden in wanted)):
            raise Refused(
                f"policy {self.name}: {type(self._model).__name__} looks ahead: what follows a "
                "text changes its hidden states, so that it gives no probability of a next token"
            )
        before = self._model.config._attn_implementation
        try:
            self._model.set_attn_implementation(register())
            together = self.hidden_packed(
                torch.cat([prompt, one, two]),
                Layout([Segment(0, 3), Segment(3, 9, (0, 3)), Segment(9, 13, (0, 3))]),
            )
            past = Past(9)
            chunks = [
                self.hidden_packed(chunk, Layout([Segment(0, len(chunk))], past, keep=True))
                for chunk in (prompt, one)
            ]
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            equal = False
        else:
            first, second = together[:9], torch.cat([together[:3], together[9:]])
            equal = all(
                _about_equal(found, expected)
                for found, expected in zip(
                    (first, second, torch.cat(chunks)), (*wanted, wanted[0]), strict=True
                )
            )
        if equal:
            return Batching.PACKED
        self._model.set_attn_implementation(before)
        return Batching.PADDED

    def _attention(self, ids: Tensor) -> AbstractContextManager[None]:
        """Torch's plain attention where it is the exact one and fits; else its own choice.

        In float32 on a CPU, the fused kernel's exponential is good to about 20 bits: on the demo
        pair's 87,029 tokens, other batches moved KL by up to 1.7e-5 nats with it and by 2.6e-6
        without. The plain one holds all attention weights of a layer.
        """
        weights_bytes = 4 * ids.numel() * ids.shape[1] * self._heads
        exact = self.device.type == "cpu" and next(self._body.parameters()).dtype == torch.float32
        if exact and weights_bytes <= ATTENTION_BYTES:
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()

    @torch.inference_mode()
    def _check_split(self) -> None:
        ids = torch.arange(8, device=self.device).remainder(self.lm_head.width).unsqueeze(0)
        seen: dict[str, Tensor] = {}
        handle = self._model.get_output_embeddings().register_forward_hook(
            lambda _module, args, output: seen.update(hidden=args[0], raw=output.clone())
        )
        kind = type(self._model).__name__
        try:
            logits = self._model(input_ids=ids, use_cache=False).logits
            ours, theirs = self.hidden(ids), seen["hidden"].to(self.device)
        except Exception as error:
            raise Refused(
                f"policy {self.name}: {kind} can't be run as a body and an lm head: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            handle.remove()
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
            raise Refused(
                f"policy {self.name}: {kind} changes the hidden states between its body and its "
                "lm head in a way that is not supported"
            )
        # The same operations in the same dtype may differ by how the library orders them:
        # a few units in the last place of the largest logit.
        logits = logits.to(self.device)
        finished = self.lm_head.finish(seen["raw"].to(self.device))
        tolerance = 4 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
        worst = float((finished - logits).abs().max())
        if not worst <= tolerance:
            raise Refused(
                f"policy {self.name}: {kind} does something to its logits that is not supported "
                f"(they differ from lm_head(hidden) by {worst:.3g})"
            )


def _body(name: str, model: Any) -> Any:
    """What ends in hidden states.

    ``get_decoder`` finds it in most models; in some it is the head, or the whole model.
    """
    from transformers import PreTrainedModel

    decoder = model.get_decoder()
    for found in (decoder, getattr(decoder, "model", None), model.base_model):
        if isinstance(found, PreTrainedModel) and found.get_output_embeddings() is None:
            return found
    raise Refused(f"policy {name}: {type(model).__name__} has no body apart from its lm head")


def _lm_head(model: Any) -> LmHead:
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
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
    return LmHead(
        weight=layer.weight.detach().to(home),
        bias=bias.detach().to(home) if bias is not None else None,
        scale=float(scale),
        softcap=softcap,
    )


def _decoder_layers(body: Any) -> list[torch.nn.Module]:
    lists = [module for module in body.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def _length_dependent_positions(config: Any) -> bool:
    """Whether a token's rotary encoding depends on how long the whole text is."""
    found = []
    left = [getattr(config.get_text_config(), "rope_parameters", None)]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            found.append(value.get("rope_type"))
            left.extend(value.values())
    return bool({"dynamic", "longrope"} & set(found))


def _chooses_what_it_attends_to(body: torch.nn.Module) -> bool:
    """Whether an indexer picks the keys of each query (DeepSeek sparse attention and its kin).

    It looks along the whole row, from more keys on than the short texts of a trial have, and the
    last token's choice among keys of equal score changes with the row's length: in plain forwards
    of tiny models, by 1.4 (HYV4) and 5.3 nats (AXK2).
    """
    return any("Indexer" in type(module).__name__ for module in body.modules())


def _about_equal(found: Tensor, expected: Tensor) -> bool:
    """Equal but for roundings: a text that sees another differs by a large part of itself.

    Root mean square over that of what is expected: 200 and 16 units in the last place of float32
    and bfloat16, where one and two were seen.
    """
    tolerance = 2e-5 if expected.dtype == torch.float32 else 0.06
    error = (found.float() - expected.float()).norm() / expected.float().norm()
    return bool(error <= tolerance)


def _check_finite(name: str, model: Any) -> None:
    for parameter_name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise Refused(
                f"policy {name}: weight {parameter_name} holds NaN or infinite values; the "
                "checkpoint is damaged"
            )
