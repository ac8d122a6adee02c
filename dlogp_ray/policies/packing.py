"""Which tokens run together: packed passes that share prompts, or padded batches where they can't.

A prompt that several responses follow runs once. Texts that fit into the token budget are packed
side by side; a prompt whose responses do not fit, or a long response, goes through a past of keys
and values, so that no pass has more tokens than the budget.

    prompt     p0 p1 p2                    hidden state at:   p2 a0 a1 | p2 b0
    responses           a0 a1 a2           predicts:          a0 a1 a2 | b0 b1
                        b0 b1
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

TOKEN_BUDGET = {"cpu": 2_048, "cuda": 16_384}
"""Of a pass, where nothing else is asked for, by device: on a CPU the activations of 2,048 tokens
stay in its last-level cache."""


@dataclass(frozen=True)
class Segment:
    """Tokens ``start`` to ``stop`` of the packed row; before them it sees those of ``prefix``."""

    start: int
    stop: int
    prefix: tuple[int, int] = (0, 0)

    @property
    def prefix_length(self) -> int:
        """Tokens of the prefix."""
        return self.prefix[1] - self.prefix[0]


class TokenSequence(NamedTuple):
    """One prompt with its response: two int32 arrays of token ids, neither of them empty."""

    prompt_ids: np.ndarray
    response_ids: np.ndarray


def count_tokens(texts: Sequence[TokenSequence]) -> int:
    """Prompt and response tokens, as a user counts them: a shared prompt each time."""
    return sum(len(t.prompt_ids) + len(t.response_ids) for t in texts)


class Pass(NamedTuple):
    """One forward pass over a packed row of t tokens that predicts m response tokens.

    Attributes:
        ids: [t] tokens.
        segments: What they are cut into.
        rows: [m] packed positions whose hidden states predict.
        where: [m] what they predict: places among all response tokens, laid end to end.
        past_length: Tokens of the past that every segment sees; 0 starts anew.
        keep: Whether these tokens are appended to the past.
        capacity: The most that the past will hold until it starts anew; 0 where there is none.
    """

    ids: np.ndarray
    segments: tuple[Segment, ...]
    rows: np.ndarray
    where: np.ndarray
    past_length: int = 0
    keep: bool = False
    capacity: int = 0


class _Response(NamedTuple):
    """Tokens of a response that are fed (the last predicts nothing) and where its first belongs."""

    fed: np.ndarray
    place: int


class _SharedPrompt(NamedTuple):
    prompt: np.ndarray
    responses: list[_Response]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(len(response.fed) for response in self.responses)


def plan_passes(
    sequences: Sequence[TokenSequence], token_budget: int, *, share_prompts: bool = True
) -> list[Pass]:
    """Cut sequences into passes of at most ``token_budget`` tokens.

    Largest first, so that a budget that does not fit into memory shows at once. The result
    depends on nothing but the arguments.

    Args:
        sequences: In any order.
        token_budget: The most tokens of one pass; at least 1.
        share_prompts: Whether equal prompts run once.

    Returns:
        Passes that together predict each response token exactly once.
    """
    groups = sorted(_group_by_prompt(sequences, share_prompts), key=lambda group: -group.tokens)
    passes = [
        chunk
        for group in groups
        if group.tokens > token_budget
        for chunk in _through_past(group, token_budget)
    ]
    small = [group for group in groups if group.tokens <= token_budget]
    return passes + [_side_by_side(batch) for batch in _fill(small, token_budget)]


def plan_whole(texts: Sequence[TokenSequence], token_budget: int) -> Iterator[Pass]:
    """Texts side by side in their order, each in one piece; a longer one than the budget alone.

    Passes predict each response token exactly once, as those of ``plan_passes``.
    """
    row, starts = _Row(), places(texts).tolist()
    for text, start in zip(texts, starts, strict=False):
        ids = np.concatenate([text.prompt_ids, text.response_ids])
        if row.tokens and row.tokens + len(ids) > token_budget:
            yield row.as_pass()
            row = _Row()
        own = row.add(ids)
        first = own.start + len(text.prompt_ids) - 1
        row.predict(first, start, len(text.response_ids))
    if row.tokens:
        yield row.as_pass()


def places(sequences: Sequence[TokenSequence]) -> np.ndarray:
    """[len(sequences) + 1]: where each response begins when all are laid end to end."""
    return np.cumsum([0, *(len(sequence.response_ids) for sequence in sequences)])


def _group_by_prompt(sequences: Sequence[TokenSequence], share: bool) -> list[_SharedPrompt]:
    groups: dict[bytes | int, _SharedPrompt] = {}
    for sequence, place in zip(sequences, places(sequences), strict=False):
        prompt = np.asarray(sequence.prompt_ids, dtype=np.int32)
        group = groups.setdefault(
            prompt.tobytes() if share else int(place), _SharedPrompt(prompt, [])
        )
        group.responses.append(_Response(sequence.response_ids[:-1], int(place)))
    return list(groups.values())


def _fill(groups: Sequence[_SharedPrompt], token_budget: int) -> Iterator[list[_SharedPrompt]]:
    batch: list[_SharedPrompt] = []
    tokens = 0
    for group in groups:
        if batch and tokens + group.tokens > token_budget:
            yield batch
            batch, tokens = [], 0
        batch.append(group)
        tokens += group.tokens
    if batch:
        yield batch


def _side_by_side(groups: Sequence[_SharedPrompt]) -> Pass:
    row = _Row()
    for group in groups:
        prompt = row.add(group.prompt)
        for response in group.responses:
            row.predict(prompt.stop - 1, response.place, 1)
            if len(response.fed):
                own = row.add(response.fed, (prompt.start, prompt.stop))
                row.predict(own.start, response.place + 1, len(response.fed))
    return row.as_pass()


def _through_past(group: _SharedPrompt, token_budget: int) -> Iterator[Pass]:
    prompt = len(group.prompt)
    long = [response for response in group.responses if len(response.fed) > token_budget]
    short = [response for response in group.responses if 0 < len(response.fed) <= token_budget]
    capacity = prompt + max((len(response.fed) for response in long), default=0)
    for start, chunk in _chunks(group.prompt, token_budget):
        row = _Row()
        own = row.add(chunk)
        if start + len(chunk) == prompt:
            for response in group.responses:
                row.predict(own.stop - 1, response.place, 1)
        yield row.as_pass(start, keep=True, capacity=capacity)
    row = _Row()
    for response in short:
        if row.tokens and row.tokens + len(response.fed) > token_budget:
            yield row.as_pass(prompt, capacity=capacity)
            row = _Row()
        own = row.add(response.fed)
        row.predict(own.start, response.place + 1, len(response.fed))
    if row.tokens:
        yield row.as_pass(prompt, capacity=capacity)
    for response in long:
        for start, chunk in _chunks(response.fed, token_budget):
            row = _Row()
            row.add(chunk)
            row.predict(0, response.place + 1 + start, len(chunk))
            yield row.as_pass(prompt + start, keep=True, capacity=capacity)


def _chunks(ids: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(ids), size):
        yield start, ids[start : start + size]


class _Row:
    """A packed row as it grows."""

    def __init__(self) -> None:
        self.tokens = 0
        self._ids: list[np.ndarray] = []
        self._segments: list[Segment] = []
        self._rows: list[np.ndarray] = []
        self._where: list[np.ndarray] = []

    def add(self, ids: np.ndarray, prefix: tuple[int, int] = (0, 0)) -> Segment:
        segment = Segment(self.tokens, self.tokens + len(ids), prefix)
        self.tokens = segment.stop
        self._ids.append(ids)
        self._segments.append(segment)
        return segment

    def predict(self, row: int, place: int, count: int) -> None:
        self._rows.append(np.arange(row, row + count))
        self._where.append(np.arange(place, place + count))

    def as_pass(self, past_length: int = 0, *, keep: bool = False, capacity: int = 0) -> Pass:
        none = np.empty(0, dtype=np.int64)
        return Pass(
            ids=np.concatenate(self._ids),
            segments=tuple(self._segments),
            rows=np.concatenate([none, *self._rows]),
            where=np.concatenate([none, *self._where]),
            past_length=past_length,
            keep=keep,
            capacity=capacity,
        )


def token_budget_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Cut sequences into batches whose padded size stays within ``token_budget``.

    Longest first; neighbours in length share a batch, so that little is padded. Ties keep their
    order: the result depends on nothing but the arguments.

    Args:
        lengths: Tokens of each sequence.
        token_budget: The most that rows x longest of a batch may be; a single sequence that is
            longer has a batch of its own.

    Returns:
        Batches of indices into ``lengths``; each index is in exactly one.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * longest <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches
