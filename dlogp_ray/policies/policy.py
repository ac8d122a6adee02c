"""One loaded policy: token ids -> hidden states -> float32 logits.

A causal language model is split into its body and its lm head (``split``). How its texts can share
a forward pass, and whether they have log-probabilities at all, is found out by trying when it is
loaded (``trial``); one for which it does not hold is refused by name.

Shapes: b sequences, s positions, t tokens of a row of texts, h hidden size.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlogp_ray.errors import Refused
from dlogp_ray.policies.attention import RowPass
from dlogp_ray.policies.checkpoint import Checkpoint
from dlogp_ray.policies.compiling import compile_layers
from dlogp_ray.policies.layers import decoder_layers
from dlogp_ray.policies.layout import Layout
from dlogp_ray.policies.linear import use_kernel
from dlogp_ray.policies.loading import load_model
from dlogp_ray.policies.packing import Segment
from dlogp_ray.policies.split import Batching, Split
from dlogp_ray.policies.trial import check_weights, context_of, find_batching


class Policy:
    """A language model ready for scoring.

    Attributes:
        name: Its name in the job.
        lm_head: Its last layer, for ``statistics``.
        batching: How its texts can share a forward pass.
        reach: Tokens of the longest texts for which that holds; longer ones run alone.
        longest: Tokens of the longest text that it can run.
        compiled: Whether ``compile`` was called.
    """

    def __init__(self, name: str, model: Any) -> None:
        """Take a loaded ``AutoModelForCausalLM``.

        Raises:
            Refused: The architecture does something that is not known here or has no
                log-probabilities of next tokens, or a weight is not finite.
        """
        self.name = name
        self.compiled = False
        self._model = model
        self._split = Split(name, model)
        self.lm_head = self._split.lm_head
        _check_finite(name, model)
        trial = find_batching(self._split)
        self._split = Split(name, model, trial.body)
        check_weights(self._split)
        self.batching, self.reach = trial.batching, trial.reach
        self.longest = trial.longest
        if self.batching is Batching.PACKED:
            self._split.attend_in_rows()

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
        return self._split.device

    @property
    def context(self) -> int:
        """Tokens of the longest text, as the checkpoint's config says."""
        return context_of(self._model.config)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names and weights of the whole model."""
        yield from self._model.named_parameters()

    def hidden(self, ids: Int[Tensor, "b s"], *, alone: bool = False) -> Float[Tensor, "b s h"]:
        """The body's last hidden states.

        Args:
            ids: Padded on the right: attention is causal, so that no real position sees the
                padding and no mask is needed.
            alone: They are whole texts of one length, such as a single one.
        """
        if self.batching is Batching.PACKED:  # beside a policy that can't be packed
            rows, length = ids.shape
            each = [Segment(start, start + length) for start in range(0, rows * length, length)]
            return self.hidden_packed(ids.flatten(), Layout(each)).view(rows, length, -1)
        if alone or self.batching is Batching.ALONE:
            return self._split.alone(ids)
        return self._split.padded(ids)

    def hidden_packed(self, ids: Int[Tensor, " t"], row_pass: RowPass) -> Float[Tensor, "t h"]:
        """The body's last hidden states over a packed row; only where ``batching`` is PACKED."""
        row_pass.compiled = self.compiled
        return self._split.packed(ids, row_pass)

    def in_float32(self) -> AbstractContextManager[None]:
        """Inside, hidden states are those of the same weights in float32, with no product rounded.

        It takes a decoder layer's memory more, and what is compiled runs uncompiled.
        """
        return self._split.in_float32()

    def compile(self) -> None:
        """Compile the decoder's layers (about 15 s), which are alike: one compilation for all."""
        self.compiled = True
        layers = decoder_layers(self._split.body)
        for layer in layers:
            use_kernel(layer)
        compile_layers(layers)


def _check_finite(name: str, model: Any) -> None:
    for parameter_name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise Refused(
                f"policy {name}: weight {parameter_name} holds NaN or infinite values; the "
                "checkpoint is damaged"
            )
