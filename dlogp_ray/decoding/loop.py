"""The paired loop: one policy drafts a block of tokens, the other checks it in a single pass.

The gate of a rule depends on the prefix and the draft alone, so that the text up to the first
firing is what token-by-token decoding would have given; there the token is drawn again. If another
one comes out, what was drafted behind it is dropped. With streams keyed by position the text is
the same for every size of block, but for roundings (``Answer.close``).

    draft      t1 t2 t3 t4          4 passes of the primary policy, one token of each row
    check       x  .  x  .          1 pass of the other, 4 tokens of each row: fires at t1 and t3
    keep       t1 t2 r3             t1 came out as t1 again; r3 is another token, and cuts here

For the same reason interventions on one answer share their text until they draw other tokens: a
sweep over rules and thresholds decodes each text that differs once. Rows whose answers end leave
the batch; branches that wait, then the next prompts, take their places.

Shapes: n rows in use, m interventions, k drafts of a block, v vocabulary.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlogp_ray.decoding.batch import Answer, Batch, Block, Prompt, Text, why_not
from dlogp_ray.decoding.block_size import LARGEST, BlockSize
from dlogp_ray.decoding.distribution import Distribution, Sampling, draw
from dlogp_ray.decoding.rules import Intervention, Rule, Seen, Side
from dlogp_ray.decoding.stopping import Stops
from dlogp_ray.decoding.streams import Purpose
from dlogp_ray.decoding.texts import PolicyTexts
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.split import Batching


class PairedDecoder:
    """Base and RL policy in memory, decoding together.

    Args:
        base: The base policy.
        rl: The RL policy, of the same vocabulary, on the same device.
        sampling: Temperature and filters of all draws.
        stops: What ends an answer.
        max_tokens: Of an answer.
        rows: Answers at a time.
        block: Tokens of a block; None for what pays most, as measured.

    Attributes:
        drafted: Tokens that were drafted so far.
        kept: Tokens of texts that came of them.
    """

    def __init__(
        self,
        base: Policy,
        rl: Policy,
        *,
        sampling: Sampling | None = None,
        stops: Stops | None = None,
        max_tokens: int = 1_024,
        rows: int = 32,
        block: int | None = None,
    ) -> None:
        """Keep the policies; nothing runs yet.

        Raises:
            ValueError: A policy's texts can't grow in slots, or there is nothing to decode.
        """
        for policy in (base, rl):
            if policy.batching is not Batching.PACKED:
                raise ValueError(
                    f"policy {policy.name}: its texts can't be packed, so that paired decoding "
                    "can't cut them back; use ExtrapolationLogitsProcessor with generate"
                )
        if min(max_tokens, rows) < 1:
            raise ValueError(f"expected max_tokens and rows from 1, got {max_tokens} and {rows}")
        if block is not None and not 1 <= block <= LARGEST:
            raise ValueError(f"expected a block of 1 to {LARGEST} tokens, got {block}")
        self._policies: dict[Side, Policy] = {"base": base, "rl": rl}
        self._width = min(base.lm_head.width, rl.lm_head.width)
        self._context = min(base.context, rl.context)
        self._sampling = sampling or Sampling()
        self._stops = stops or Stops()
        self._max_tokens = max_tokens
        self._rows = rows
        self._block = block
        self.drafted = 0
        self.kept = 0

    def decode(self, prompts: Iterable[Prompt]) -> Iterator[Answer]:
        """Answer all prompts, with each of their interventions.

        Args:
            prompts: In any number; they are taken as rows become free.

        Yields:
            Answers as they end.

        Raises:
            ValueError: A prompt can't be answered (``why_not``), or an extrapolation is not
                finite; the problem is named.
        """
        prompts = list(prompts)
        for primary in ("base", "rl"):
            yield from self._decode(primary, deque(_of_one_primary(prompts, primary)))

    @torch.inference_mode()
    def _decode(self, primary: Side, prompts: deque[Prompt]) -> Iterator[Answer]:
        size = BlockSize(self._block)
        batch = Batch(self._rows, self._max_tokens, self._context)
        texts = {
            side: PolicyTexts(p, self._rows, self._width) for side, p in self._policies.items()
        }
        drafting, checking = texts[primary], texts["rl" if primary == "base" else "base"]
        waiting: list[Text] = []
        free = list(range(self._rows))
        while True:
            new = self._fill(batch, waiting, prompts, free, texts.values())
            if not len(batch):
                return
            replaced = batch.replaced
            k = size.next(batch.answered, replaced, batch.left, more=bool(waiting or prompts))
            k = max(1, min(k, batch.most_drafts()))
            drafting.begin(batch, new)
            started = time.perf_counter()
            block, draft_s, check_s = self._grow(batch, k, primary, drafting, checking)
            grown, branches = batch.keep(block)
            self.drafted += block.drafts.size
            self.kept += int(grown.sum())
            size.record(
                k,
                draft_s=draft_s,
                check_s=check_s,
                rest_s=time.perf_counter() - started - draft_s - check_s,
                written=int(grown.sum()),
                replaced=int((batch.replaced - replaced).sum()),
            )
            batch.stop(self._ended(batch))
            for side in texts.values():
                side.cut(batch.lengths[: len(batch)] - 1)
            for text in branches:
                text = replace(text, stopped=self._stops.at_end(text.ids))
                if batch.has_ended(text):
                    yield from batch.answers(text)
                else:
                    waiting.append(text)
            ended = batch.finished.tolist()
            for row in ended:
                yield from batch.answers(batch.text(row))
            free = [*ended, *range(len(batch), self._rows)]

    def _grow(
        self, batch: Batch, k: int, primary: Side, drafting: PolicyTexts, checking: PolicyTexts
    ) -> tuple[Block, float, float]:
        """Up to ``k`` more tokens of each text: drafted, checked, drawn anew where a rule says.

        Returns:
            The block, and what drafting and checking took in seconds.
        """
        block = Block.empty(len(batch), len(batch.interventions), k)
        started = time.perf_counter()
        mine = self._draft(batch, block, drafting)
        drafted = time.perf_counter()
        block.ends = np.minimum(self._first_end(batch, block), batch.left)
        if all(intervention.rule == "never" for intervention in _in_use(batch)):
            return block, drafted - started, 0.0
        checking.begin(batch, batch.rows)
        began = time.perf_counter()
        other = checking.logits(batch.rows, batch.tokens, k)
        self._check(batch, block, primary, mine, other)
        self._redraw(batch, block, primary, mine, other)
        return block, drafted - started, time.perf_counter() - began

    def _fill(
        self,
        batch: Batch,
        waiting: list[Text],
        prompts: deque[Prompt],
        free: list[int],
        texts: Iterable[PolicyTexts],
    ) -> Int[np.ndarray, " new"]:
        """Give the rows that are free what waits, then the next prompts.

        Returns:
            The rows that got a text.
        """
        new = []
        for row in free:
            text = waiting.pop() if waiting else self._next(batch, prompts)
            if text is None:
                break
            batch.place(row, text)
            new.append(row)
        for side in texts:
            side.slots.lengths[new] = 0
        for row in reversed(free[len(new) :]):
            if row >= len(batch):
                continue  # never in use
            source = batch.move(row)
            if source is not None:
                for side in texts:
                    side.slots.copy(source, row)
        return np.array(new, dtype=np.int64)

    def _next(self, batch: Batch, prompts: deque[Prompt]) -> Text | None:
        if not prompts:
            return None
        prompt = prompts.popleft()
        if reason := why_not(prompt.ids, self._context, self._width):
            raise ValueError(f"problem {prompt.problem}: {reason}")
        return batch.begin(prompt)

    def _draft(self, batch: Batch, block: Block, texts: PolicyTexts) -> Float[Tensor, "n k v"]:
        """[n, k, v]: the logits that each draft was drawn from."""
        logits = []
        for i in range(block.size):
            logits.append(texts.logits(batch.rows, batch.tokens, 1))  # [n, v]
            numbers = batch.numbers(Purpose.DRAFT, batch.rows, np.full(len(batch), i))
            block.drafts[:, i], block.close[:, i] = self._draw(logits[-1], numbers)
            batch.draft(block)
        return torch.stack(logits, 1)

    def _first_end(self, batch: Batch, block: Block) -> Int[np.ndarray, " n"]:
        """[n] drafts up to where each answer would end by itself, k where it would not."""
        ends: np.ndarray = np.minimum(self._stops.first_token(block.drafts) + 1, block.size)
        if self._stops.strings:
            for row, drafts in enumerate(block.drafts):
                answer = batch.answer_ids(row)
                end = self._stops.first_string(np.concatenate([answer, drafts]), len(answer))
                if end is not None:
                    ends[row] = min(ends[row], end - len(answer))
        return ends

    def _ended(self, batch: Batch) -> Int[np.ndarray, " ended"]:
        """Rows whose last token ends the answer."""
        last = batch.tokens[batch.rows, batch.lengths[: len(batch)] - 1]
        ended: np.ndarray = np.isin(last, self._stops.tokens)
        if self._stops.strings:
            ended |= [self._stops.at_end(batch.answer_ids(row)) for row in batch.rows.tolist()]
        return np.flatnonzero(ended)

    def _check(
        self,
        batch: Batch,
        block: Block,
        primary: Side,
        mine: Float[Tensor, "n k v"],
        other: Float[Tensor, "nk v"],
    ) -> None:
        """Ask each rule about all drafts of its rows, once for all of its thresholds."""
        n, k = block.drafts.shape
        device = mine.device
        drafts = torch.from_numpy(block.drafts).to(device)  # [n, k]
        gate = torch.from_numpy(  # [n, k]
            batch.numbers(Purpose.GATE, batch.rows[:, None], block.ahead[None])
        ).to(device)
        members = batch.members[:n]  # [n, m]
        both = _pair(primary, mine.flatten(0, 1), other)
        every = Seen(*both, primary, drafts.view(-1, 1), gate.view(-1, 1))
        by_rule: dict[Rule, list[int]] = {}
        for number in np.flatnonzero(members.any(0)).tolist():
            by_rule.setdefault(batch.interventions[number].definition, []).append(number)
        for rule, numbers in by_rule.items():
            rows = np.flatnonzero(members[:, numbers].any(1))  # [r] who asks this rule
            seen = every
            if 2 * len(rows) < n:
                chosen = torch.from_numpy(rows).to(device)
                seen = Seen(
                    *_pair(primary, mine[chosen].flatten(0, 1), other.view(n, k, -1)[chosen]),
                    primary,
                    drafts[chosen].view(-1, 1),
                    gate[chosen].view(-1, 1),
                )
            value = rule.statistic(seen)  # [n or r times k, 1]
            for number in numbers:
                fired = batch.interventions[number].beyond(value).expand(len(value), 1)
                fired_at = fired.view(-1, k).cpu().numpy()  # [n or r, k]
                block.fired[rows, number] = fired_at if seen is not every else fired_at[rows]

    def _redraw(
        self,
        batch: Batch,
        block: Block,
        primary: Side,
        mine: Float[Tensor, "n k v"],
        other: Float[Tensor, "nk v"],
    ) -> None:
        """Draw again where a rule fires, place by place, until the token is another one."""
        n, k = block.drafts.shape
        other = other.view(mine.shape)
        active = batch.members[:n].copy()  # [n, m] whose text is the draft so far
        by_gamma: dict[float | None, list[int]] = {}
        for number in np.flatnonzero(active.any(0)).tolist():
            by_gamma.setdefault(batch.interventions[number].gamma, []).append(number)
        for place in range(k):
            fires = active & block.fired[:, :, place] & (place < block.ends)[:, None]  # [n, m]
            for numbers in by_gamma.values():
                rows = np.flatnonzero(fires[:, numbers].any(1))  # [r]
                if not len(rows):
                    continue
                at = torch.from_numpy(rows).to(mine.device)
                base, rl = _pair(primary, mine[at, place], other[at, place])
                logits = _redraw_logits(batch.interventions[numbers[0]], base, rl, batch, rows)
                stream = batch.numbers(Purpose.REDRAW, rows, np.full(len(rows), place))
                tokens, close = self._draw(logits, stream)  # [r] each
                grid = np.ix_(rows, np.array(numbers))  # [r, m of this γ]
                changes = fires[grid] & (tokens != block.drafts[rows, place])[:, None]
                block.redrawn_close[rows[:, None], numbers, place] = fires[grid] & close[:, None]
                block.place[grid] = np.where(changes, place, block.place[grid])
                block.token[grid] = np.where(changes, tokens[:, None], block.token[grid])
                active[grid] &= ~changes

    def _draw(
        self, logits: Float[Tensor, "r v"], numbers: Float[np.ndarray, " r"]
    ) -> tuple[Int[np.ndarray, " r"], Bool[np.ndarray, " r"]]:
        probabilities = self._sampling.apply(logits)
        ids, close = draw(probabilities, torch.from_numpy(numbers).to(logits.device))
        return ids.cpu().numpy(), close.cpu().numpy()


def _of_one_primary(prompts: Iterable[Prompt], primary: Side) -> Iterator[Prompt]:
    """The prompts with those of their interventions in which this policy drafts."""
    for prompt in prompts:
        some = tuple(one for one in prompt.interventions if one.primary == primary)
        if some:
            yield replace(prompt, interventions=some)


def _in_use(batch: Batch) -> list[Intervention]:
    return [batch.interventions[i] for i in np.flatnonzero(batch.members[: len(batch)].any(0))]


def _pair(
    primary: Side, mine: Float[Tensor, "r v"], other: Tensor
) -> tuple[Distribution, Distribution]:
    """Base and RL."""
    one, two = Distribution(mine), Distribution(other.reshape(mine.shape))
    return (one, two) if primary == "base" else (two, one)


def _redraw_logits(
    intervention: Intervention, base: Distribution, rl: Distribution, batch: Batch, rows: np.ndarray
) -> Tensor:
    try:
        return intervention.redraw(base, rl)
    except ValueError as error:
        problems = ", ".join(batch.prompts[row].problem for row in rows[:3])
        raise ValueError(f"problem {problems}: {error}") from None
