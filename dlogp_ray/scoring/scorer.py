"""Run all policies over the same texts and return their statistics per response token.

    prompt    p0 p1 p2                    hidden state at:   p2 y0 y1
    response           y0 y1 y2           predicts:          y0 y1 y2

The lm heads run on exactly these positions, one for each response token.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.statistics import score_rows
from dlogp_ray.scoring.packing import token_budget_batches

MAX_MASS_OUTSIDE = 1e-3
"""The most probability that a policy may give to ids that another policy does not have."""

Arrays = dict[str, np.ndarray]


class TokenSequence(NamedTuple):
    """One prompt with its response: two int32 arrays of token ids, neither of them empty."""

    prompt_ids: np.ndarray
    response_ids: np.ndarray


class PairScorer:
    """Policies in memory, scored together; the base runs once however many others there are.

    Args:
        policies: By name; all on one device.
        base: The one that the others are compared with, None for a policy alone.
        token_budget: Padded tokens of one forward pass.
        temperature: Logits are divided by it.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy],
        *,
        base: str | None,
        token_budget: int,
        temperature: float = 1.0,
    ) -> None:
        """Keep the policies; nothing runs yet."""
        self._policies = dict(policies)
        self._base = base
        self._token_budget = token_budget
        self._temperature = temperature
        self._device = next(iter(self._policies.values())).device

    def score(self, sequences: Sequence[TokenSequence]) -> list[dict[str, Arrays]]:
        """Score sequences, in any number and order.

        Returns:
            For each sequence, by policy, arrays of the response's length named as
            ``policies.statistics`` names them.
        """
        results: list[dict[str, Arrays]] = [{} for _ in sequences]
        lengths = [len(s.prompt_ids) + len(s.response_ids) - 1 for s in sequences]
        for batch in token_budget_batches(lengths, self._token_budget):
            for index, arrays in zip(
                batch, self._score_batch([sequences[i] for i in batch]), strict=True
            ):
                results[index] = arrays
        return results

    @torch.inference_mode()
    def _score_batch(self, batch: Sequence[TokenSequence]) -> list[dict[str, Arrays]]:
        # The last response token predicts nothing that is scored, so it is not fed.
        inputs = [np.concatenate([s.prompt_ids, s.response_ids])[:-1] for s in batch]
        ids = np.zeros((len(batch), max(map(len, inputs))), dtype=np.int64)
        wanted = np.zeros(ids.shape, dtype=bool)
        for row, (sequence, tokens) in enumerate(zip(batch, inputs, strict=True)):
            ids[row, : len(tokens)] = tokens
            wanted[row, len(sequence.prompt_ids) - 1 : len(tokens)] = True
        ids_there = torch.from_numpy(ids).to(self._device)
        rows = torch.from_numpy(wanted).to(self._device)
        targets = torch.from_numpy(np.concatenate([s.response_ids for s in batch]).astype(np.int64))
        statistics = score_rows(
            {name: policy.hidden(ids_there)[rows] for name, policy in self._policies.items()},
            {name: policy.lm_head for name, policy in self._policies.items()},
            targets.to(self._device),
            base=self._base,
            temperature=self._temperature,
        )
        ends = np.cumsum([len(s.response_ids) for s in batch])[:-1]
        split = {
            name: {key: np.split(_to_numpy(value), ends) for key, value in values.items()}
            for name, values in statistics.items()
        }
        return [
            {
                name: {key: parts[i] for key, parts in values.items()}
                for name, values in split.items()
            }
            for i in range(len(batch))
        ]


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
