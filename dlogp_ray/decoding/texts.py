"""The texts of a batch as one policy has seen them: their next tokens in, logits out.

Shapes: r rows, n positions, v vocabulary.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dlogp_ray.decoding.batch import Batch
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.slots import SlotPass, Slots

PASS_TOKENS = {"cpu": 2_048, "cuda": 16_384}
"""Of one forward pass, where many prompts come in at once."""
_CHUNK = 512
"""Tokens of one text in a pass: scores of a long prompt with itself stay small."""


class PolicyTexts:
    """One policy's keys and values of every row's text.

    Args:
        policy: Whose.
        rows: How many texts there can be.
        width: v, the ids that all policies have.
    """

    def __init__(self, policy: Policy, rows: int, width: int) -> None:
        """No text has been seen."""
        self.policy = policy
        self.slots = Slots(rows)
        self._width = width
        self._most = PASS_TOKENS.get(policy.device.type, PASS_TOKENS["cpu"])

    def begin(self, batch: Batch, rows: np.ndarray) -> None:
        """Run what has not been seen of some rows, but for their last tokens.

        What other texts begin with as well is run once.
        """
        unseen = rows[self.slots.lengths[rows] < batch.lengths[rows] - 1]
        fresh = unseen[self.slots.lengths[unseen] == 0]
        # Of each prompt that no row has seen, one text is read; then the others copy what they can.
        by_prompt: dict[bytes, int] = {}
        by_stream: dict[tuple[str, int, int], list[int]] = {}
        for row in np.flatnonzero(self.slots.lengths[: len(batch)]).tolist():
            by_prompt.setdefault(batch.prompts[row].key, row)
            by_stream.setdefault(batch.prompts[row].stream, []).append(row)
        leading = [
            row
            for row in fresh.tolist()
            if by_prompt.setdefault(batch.prompts[row].key, row) == row
        ]
        self._read(np.array(leading, dtype=np.int64), batch)
        following = np.setdiff1d(fresh, leading)
        for row in following.tolist():
            prompt = batch.prompts[row]
            others = by_stream.get(prompt.stream, [by_prompt[prompt.key]])
            source, shared = batch.most_alike(row, others)
            length = min(shared, int(self.slots.lengths[source]), int(batch.lengths[row]) - 1)
            self.slots.copy(source, row, length)
        self._read(np.setdiff1d(unseen, leading), batch)

    def logits(self, rows: np.ndarray, tokens: np.ndarray, last: int) -> Float[Tensor, "n v"]:
        """Run the next tokens of some rows, and predict what follows each of them.

        Args:
            rows: [r].
            tokens: [rows, capacity], the texts of all rows.
            last: How many tokens of each.

        Returns:
            n = r · last positions, row by row, in float32.
        """
        hidden = self._run(rows, tokens, np.full(len(rows), last))
        logits = self.policy.lm_head.logits(hidden, compiled=self.policy.compiled)
        return logits[:, : self._width]

    def cut(self, lengths: np.ndarray) -> None:
        """Forget what lies beyond ``lengths`` [n] of the first n rows."""
        seen = self.slots.lengths[: len(lengths)]
        np.minimum(seen, lengths, out=seen)

    def _read(self, rows: np.ndarray, batch: Batch) -> None:
        while True:
            left = batch.lengths[rows] - 1 - self.slots.lengths[rows]
            rows, left = rows[left > 0], left[left > 0]
            if not len(rows):
                return
            counts = np.minimum(left, _CHUNK)
            fit = max(1, int(np.searchsorted(np.cumsum(counts), self._most, side="right")))
            self._run(rows[:fit], batch.tokens, counts[:fit])

    def _run(self, rows: np.ndarray, tokens: np.ndarray, counts: np.ndarray) -> Tensor:
        starts = np.cumsum(counts) - counts
        positions = np.arange(counts.sum()) + np.repeat(self.slots.lengths[rows] - starts, counts)
        ids = torch.from_numpy(tokens[np.repeat(rows, counts), positions])
        row_pass = SlotPass(self.slots, rows, counts)
        return self.policy.hidden_packed(ids.to(self.policy.device), row_pass)
