"""Run all policies over the same texts and return their statistics per response token.

The bodies run over packed passes that share prompts, or, for an architecture that can't be packed,
over batches padded on the right; the lm heads run on the positions that predict response tokens.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from dlogp_ray.errors import RowRejected
from dlogp_ray.policies.layout import Layout, Past
from dlogp_ray.policies.packing import (
    Pass,
    TokenSequence,
    places,
    plan_passes,
    token_budget_batches,
)
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.split import Batching
from dlogp_ray.scoring.statistics import score_rows
from dlogp_ray.status import Status

MAX_MASS_OUTSIDE = 1e-3
"""The most probability that a policy may give to ids that another policy does not have."""

_SMALLEST_BUDGET = 64
"""Tokens of a pass; where that does not fit, half of it would not help."""
_LOG = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
Predicted = tuple[dict[str, Tensor], np.ndarray]
"""By policy the hidden states [m, h] that predict m response tokens, and the tokens' places [m]."""


@dataclass(frozen=True)
class Scored(Sequence[dict[str, Arrays]]):
    """Statistics of some texts, all tokens one after another; each text's are parts of them.

    Attributes:
        columns: By policy, arrays [n] of all n response tokens, named as ``scoring.statistics``
            names them; none where there are no texts.
        starts: [texts + 1] where each text's begin.
    """

    columns: dict[str, Arrays]
    starts: Int[np.ndarray, " m"]

    def __len__(self) -> int:
        """Texts."""
        return len(self.starts) - 1

    @overload
    def __getitem__(self, at: int) -> dict[str, Arrays]: ...
    @overload
    def __getitem__(self, at: slice) -> list[dict[str, Arrays]]: ...
    def __getitem__(self, at: int | slice) -> dict[str, Arrays] | list[dict[str, Arrays]]:
        """By policy, the arrays of a text's response."""
        if isinstance(at, slice):
            return [self[index] for index in range(len(self))[at]]
        index = range(len(self))[at]
        part = slice(self.starts[index], self.starts[index + 1])
        return {
            name: {key: array[part] for key, array in columns.items()}
            for name, columns in self.columns.items()
        }


class PairScorer:
    """Policies in memory, scored together; the base runs once however many others there are.

    Args:
        policies: By name; all on one device.
        base: The one that the others are compared with, None for a policy alone.
        token_budget: Tokens of one forward pass.
        temperature: Logits are divided by it.
        sampled_only: Only the statistics of the sampled tokens: log-probabilities.
        share_prompts: Whether equal prompts run once.

    Attributes:
        base: As given.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy],
        *,
        base: str | None,
        token_budget: int,
        temperature: float = 1.0,
        sampled_only: bool = False,
        share_prompts: bool = True,
    ) -> None:
        """Keep the policies; nothing runs yet."""
        self._policies = dict(policies)
        self.base = base
        self._token_budget = token_budget
        self._temperature = temperature
        self._sampled_only = sampled_only
        self._share_prompts = share_prompts
        self._compiled = False
        self._device = next(iter(self._policies.values())).device
        self._batching = min(policy.batching for policy in self._policies.values())
        self._reach = min(policy.reach for policy in self._policies.values())
        self._longest = min(policy.longest for policy in self._policies.values())

    def compile(self) -> None:
        """Fuse layers and statistics from now on; the next call takes 15 to 60 s longer."""
        self.compile_statistics()
        for policy in self._policies.values():
            policy.compile()

    def compile_statistics(self) -> None:
        """Fuse the statistics' passes only."""
        self._compiled = True

    def score(self, sequences: Sequence[TokenSequence]) -> Scored:
        """Score sequences, in any number and order.

        Where memory does not suffice for a pass, what is left is done in passes of half as many
        tokens; the next call begins with the full budget again.

        Raises:
            RowRejected: A text is longer than the positions that a policy has; nothing was scored.
            torch.OutOfMemoryError, MemoryError, RuntimeError: Not even the smallest pass fits.
        """
        starts = places(sequences)
        if not sequences:
            return Scored({}, starts)
        targets = np.concatenate([sequence.response_ids for sequence in sequences])
        done = np.zeros(len(targets), dtype=bool)
        results: dict[str, Arrays] = {name: {} for name in self._policies}
        left, budget = list(range(len(sequences))), self._token_budget
        while left:
            tokens = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in left])
            try:
                for hidden, places_left in self._hidden([sequences[i] for i in left], budget):
                    where = tokens[places_left]
                    for name, columns in self.statistics(hidden, targets[where]).items():
                        for key, array in columns.items():
                            if key not in results[name]:
                                results[name][key] = np.empty(len(targets), dtype=array.dtype)
                            results[name][key][where] = array
                    done[where] = True
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or budget <= _SMALLEST_BUDGET:
                    raise
                _LOG.warning(
                    "out of memory with %d tokens a pass; going on with %d", budget, budget // 2
                )
                budget //= 2
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
            left = [i for i in left if not done[starts[i] : starts[i + 1]].all()]
        return Scored(results, starts)

    def hidden(
        self, sequences: Sequence[TokenSequence], token_budget: int | None = None
    ) -> dict[str, Tensor]:
        """What ``score`` runs the lm heads on, all of it in memory.

        Args:
            sequences: At least one.
            token_budget: A smaller one than the scorer's own.

        Returns:
            By policy [n, h]: the states that predict all n response tokens, laid end to end.
        """
        budget = min(token_budget or self._token_budget, self._token_budget)
        parts = list(self._hidden(sequences, budget))
        where = np.concatenate([tokens for _, tokens in parts])
        order = torch.from_numpy(np.argsort(where)).to(self._device)
        return {
            name: torch.cat([states[name] for states, _ in parts])[order] for name in self._policies
        }

    @property
    def lower_dtype(self) -> str | None:
        """A dtype of less than float32 that a policy has weights in; None where none has."""
        weights = (w for policy in self._policies.values() for _name, w in policy.parameters())
        dtypes = {w.dtype for w in weights if w.is_floating_point()} - {torch.float32}
        return min((str(dtype).removeprefix("torch.") for dtype in dtypes), default=None)

    def hidden_in_float32(self, sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
        """``hidden`` of the same weights in float32, in passes of half as many tokens."""
        with ExitStack() as stack:
            for policy in self._policies.values():
                stack.enter_context(policy.in_float32())
            return self.hidden(sequences, max(1, self._token_budget // 2))

    def statistics(self, hidden: Mapping[str, Tensor], targets: np.ndarray) -> dict[str, Arrays]:
        """By policy, arrays [n] named as ``scoring.statistics`` names them.

        Args:
            hidden: By policy, the states [n, h] that predict the targets.
            targets: [n] token ids.
        """
        statistics = score_rows(
            hidden,
            {name: policy.lm_head for name, policy in self._policies.items()},
            torch.from_numpy(targets.astype(np.int64)).to(self._device),
            base=self.base,
            temperature=self._temperature,
            sampled_only=self._sampled_only,
            compiled=self._compiled,
        )
        return {
            name: {key: values.cpu().numpy() for key, values in columns.items()}
            for name, columns in statistics.items()
        }

    def base_twice(self, again: str) -> "PairScorer":
        """A scorer like this one of the base alone, compared with itself under the name ``again``.

        Raises:
            ValueError: There is no base.
        """
        if self.base is None:
            raise ValueError("expected a scorer of several policies, got one that has no base")
        twin = copy.copy(self)
        twin._policies = dict.fromkeys((self.base, again), self._policies[self.base])
        return twin

    @torch.inference_mode()
    def _hidden(self, sequences: Sequence[TokenSequence], token_budget: int) -> Iterator[Predicted]:
        """The hidden states that predict, pass by pass."""
        self._check_lengths(sequences)
        if self._batching is Batching.PACKED:
            pasts: dict[str, Past] = {}
            for packed in plan_passes(sequences, token_budget, share_prompts=self._share_prompts):
                hidden = self._run_packed(packed, pasts)
                if len(packed.where):
                    yield hidden, packed.where
        else:
            lengths = [len(s.prompt_ids) + len(s.response_ids) for s in sequences]
            starts = places(sequences).tolist()
            reach = self._reach if self._batching is Batching.PADDED else 0
            for i in [i for i, length in enumerate(lengths) if length > reach]:
                yield self._run_padded([sequences[i]], [starts[i]], alone=True)
            near = [i for i, length in enumerate(lengths) if length <= reach]
            for batch in token_budget_batches([lengths[i] - 1 for i in near], token_budget):
                texts_of_pass = [near[i] for i in batch]
                yield self._run_padded(
                    [sequences[i] for i in texts_of_pass], [starts[i] for i in texts_of_pass]
                )

    def _check_lengths(self, sequences: Sequence[TokenSequence]) -> None:
        for text in sequences:
            if len(text.prompt_ids) + len(text.response_ids) > self._longest:
                raise RowRejected(
                    Status.TOO_LONG,
                    f"{len(text.prompt_ids)} prompt and {len(text.response_ids)} response tokens; "
                    f"the policies take {self._longest}",
                )

    def _run_packed(self, packed: Pass, pasts: dict[str, Past]) -> dict[str, Tensor]:
        ids = torch.from_numpy(packed.ids.astype(np.int64)).to(self._device)
        rows = torch.from_numpy(packed.rows).to(self._device)
        hidden = {}
        for name, policy in self._policies.items():
            if not packed.capacity:
                layout = Layout(packed.segments)
            else:
                if packed.past_length == 0:
                    pasts[name] = Past(packed.capacity)
                pasts[name].length = packed.past_length
                layout = Layout(packed.segments, pasts[name], keep=packed.keep)
            hidden[name] = policy.hidden_packed(ids, layout)[rows]
        return hidden

    def _run_padded(
        self, batch: Sequence[TokenSequence], starts: Sequence[int], *, alone: bool = False
    ) -> Predicted:
        # The last response token predicts nothing that is scored, so it is fed only where the
        # text's length may count.
        stop = None if alone else -1
        inputs = [np.concatenate([s.prompt_ids, s.response_ids])[:stop] for s in batch]
        ids = np.zeros((len(batch), max(map(len, inputs))), dtype=np.int64)
        wanted = np.zeros(ids.shape, dtype=bool)
        for row, (sequence, tokens) in enumerate(zip(batch, inputs, strict=True)):
            ids[row, : len(tokens)] = tokens
            first = len(sequence.prompt_ids) - 1
            wanted[row, first : first + len(sequence.response_ids)] = True
        ids_there = torch.from_numpy(ids).to(self._device)
        rows = torch.from_numpy(wanted).to(self._device)
        where = [
            np.arange(start, start + len(s.response_ids))
            for s, start in zip(batch, starts, strict=True)
        ]
        hidden = {
            name: policy.hidden(ids_there, alone=alone)[rows]
            for name, policy in self._policies.items()
        }
        return hidden, np.concatenate(where)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # Torch's allocator for CPUs has no class of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
