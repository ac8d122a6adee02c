"""Whether one model's texts can share a pass, and whether it has log-probabilities at all.

All is compared with the model's own forward of each text alone, in a model in which nothing ran
before. First, whether there is such a thing as its log-probabilities: the forward has to repeat
itself, and what follows a token must not change it. Then the ways to share a pass, the lesser
first: each text by itself, rows of other lengths beside each other, and all in one row with a
shared prompt and a past.

Shapes: s tokens of a text, v vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dlogp_ray.policies.layout import Layout, Past
from dlogp_ray.policies.packing import Segment
from dlogp_ray.policies.split import Batching, Split
from dlogp_ray.policies.twin import FIRST_LIMIT

PROMPT = 20
"""Tokens that the first two texts share."""
FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
"""What models raise on an input that they are not made for."""

ROUNDED = 2e-3
"""How far the logits of a token lie apart in passes of other shapes, root mean square over that of
all: up to 7e-4 was seen in narrow twins (Kolibri), and from 0.01 on where a text sees another one
or its encoding is another."""
_UNTOUCHED = 2e-5
"""The same of passes of one shape that differ in tokens which must not be seen: 0 where nothing is
seen, and a unit in the last place where experts sort the tokens (2e-7)."""


_LOOKS_AHEAD = (
    "looks ahead: what follows a text changes its hidden states, so that it gives no probability "
    "of a next token"
)


class Unfit(Exception):
    """What the model does that makes it unfit for scoring."""


class OtherLogits(Unfit):
    """Its logits are not those of its lm head over its body."""


def best_batching(
    fresh: Callable[[], Split], texts: Sequence[Tensor], *, may_pack: bool
) -> Batching:
    """The best way for the texts to share a pass.

    Args:
        fresh: Gives the model as it is where nothing ran in it.
        texts: Three; the first two share a prompt, and the first repeats ids of its own.
        may_pack: Whether texts may share a row.

    Raises:
        Unfit: There is no way at all.
    """
    split = fresh()
    texts = [text.to(split.device) for text in texts]
    try:
        wanted = [forward(fresh(), text) for text in texts]
        _check_repeats(fresh, split, texts, wanted)
        _check_looks_back(split, texts, wanted)
        for text in texts:
            check_logits(split, text)
    except FAILURES as error:
        raise Unfit(f"can't be run as a body and an lm head: {said(error)}") from error
    if _chooses_what_it_attends_to(split.body) or _knows_the_length(split, texts, wanted):
        return Batching.ALONE
    if not _shares(lambda three: _padded(split, three), texts, wanted):
        return Batching.ALONE
    if not may_pack or not _shares(lambda three: _packed(fresh(), three), texts, wanted):
        return Batching.PADDED
    return Batching.PACKED


def forward(split: Split, text: Tensor) -> Tensor:
    """[s, v]: what the model says of a text, whatever ran before."""
    split.whole(text[None, :1])  # as in ``Split.alone``
    return split.whole(text[None])[1][0]


def _equal(given: Tensor, wanted: Tensor, tolerance: float) -> bool:
    error = (given - wanted).square().mean(-1).sqrt().max()
    return bool(error <= tolerance * wanted.square().mean().sqrt())


def _shares(
    run: Callable[[Sequence[Tensor]], list[list[Tensor]]],
    texts: Sequence[Tensor],
    wanted: Sequence[Tensor],
) -> bool:
    """Whether texts that share passes say what they say alone, whatever the others are.

    Args:
        run: Takes texts; by way of running them, the logits [s, v] of each.
        texts: As of ``best_batching``.
        wanted: The logits of each alone.
    """
    one, two, other = texts
    instead = other.roll(1)
    try:
        given = run(texts)
        # The text that is left as it is, and what the others become.
        changes = [
            (0, [one, torch.cat([one[:PROMPT], instead[:9]]), instead]),
            (1, [torch.cat([one[:PROMPT], one[PROMPT:].roll(1)]), two, instead]),
            (2, [one.roll(1), torch.cat([one.roll(1)[:PROMPT], two[PROMPT:]]), other]),
        ]
        beside = [(i, run(changed)) for i, changed in changes]
    except FAILURES:
        return False
    return all(
        _equal(way[i], wanted[i][: len(way[i])], ROUNDED) for way in given for i in range(3)
    ) and all(
        _equal(changed[i], way[i], _UNTOUCHED)
        for i, ways in beside
        for way, changed in zip(given, ways, strict=True)
    )


def _check_repeats(
    fresh: Callable[[], Split], split: Split, texts: Sequence[Tensor], wanted: Sequence[Tensor]
) -> None:
    if not _equal(forward(fresh(), texts[0]), wanted[0], ROUNDED):
        raise Unfit("does not repeat itself: two forwards of one text differ, as by a random draw")
    again = [forward(split, text) for text in reversed(texts)][-1]
    if not _equal(again, wanted[0], ROUNDED):
        raise Unfit("does not repeat itself: what ran before changes the forward of a text")


def _check_looks_back(split: Split, texts: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    text, _, other = texts
    for kept in (len(text) // 2, len(text) - 2):
        changed = torch.cat([text[:kept], other[: len(text) - kept]])
        if not _equal(forward(split, changed)[:kept], wanted[0][:kept], _UNTOUCHED):
            raise Unfit(_LOOKS_AHEAD)


def check_logits(split: Split, text: Tensor, tolerance: float = ROUNDED) -> None:
    """Whether a text's logits are those of the lm head over the body's hidden states.

    Raises:
        OtherLogits: They are not.
    """
    given, wanted = (found[0] for found in split.whole(text[None]))
    hidden = split.padded(text[None])[0]
    if given.shape == hidden.shape:
        logits = split.lm_head.logits(hidden)
        if logits.shape == wanted.shape and _equal(logits, wanted, tolerance):
            return
        if _equal(given.float(), hidden.float(), 1e-2):
            raise OtherLogits(
                "does something to its logits that is not supported: they are not lm_head(hidden)"
            )
    raise OtherLogits(
        "changes the hidden states between its body and its lm head in a way that is not supported"
    )


def _knows_the_length(split: Split, texts: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether the beginning of a text is another where the text ends earlier.

    The encoding of positions may know the length of the text, and then shows it from the first few
    tokens on: so it was trained. Where only later tokens show it, they attend to what happens to
    follow (Doge chooses among more keys than its window by how many there are).

    Raises:
        Unfit: Only later ones do.
    """
    # Of few ids: equal scores at every edge of a choice.
    again = texts[0][:5].repeat(len(texts[0]) // 5)
    for text, logits in ((again, forward(split, again)), *zip(texts, wanted, strict=True)):
        for end in (FIRST_LIMIT - 1, len(text) // 3, len(text) - 1):
            shorter = forward(split, text[:end])
            if _equal(shorter, logits[:end], ROUNDED):
                continue
            if _equal(shorter[:FIRST_LIMIT], logits[: min(end, FIRST_LIMIT)], ROUNDED):
                raise Unfit(_LOOKS_AHEAD)
            return True
    return False


def _chooses_what_it_attends_to(body: torch.nn.Module) -> bool:
    """Whether an indexer picks the keys of each query (DeepSeek sparse attention and its kin).

    The last token's choice among keys of equal score changes with the row's length: in plain
    forwards of tiny models, by 1.4 (HYV4) and 5.3 nats (AXK2).
    """
    return any("Indexer" in type(module).__name__ for module in body.modules())


def _padded(split: Split, texts: Sequence[Tensor]) -> list[list[Tensor]]:
    """Rows beside each other; as when they are scored, their last tokens are not fed."""
    rows = torch.nn.utils.rnn.pad_sequence([text[:-1] for text in texts], batch_first=True)
    logits = split.lm_head.logits(split.padded(rows).flatten(0, 1)).view(*rows.shape, -1)
    return [[row[: len(text) - 1] for row, text in zip(logits, texts, strict=True)]]


def _packed(split: Split, texts: Sequence[Tensor]) -> list[list[Tensor]]:
    """All in one row with a shared prompt; and again after a past, the first in chunks."""
    one, two, other = texts
    prompt, first, second = one[:PROMPT], one[PROMPT:], two[PROMPT:]
    split.attend_in_rows()

    def run(
        *parts: tuple[Tensor, tuple[int, int]], past: Past | None = None, keep: bool = False
    ) -> tuple[Tensor, ...]:
        stops = torch.tensor([len(ids) for ids, _ in parts]).cumsum(0).tolist()
        segments = [
            Segment(stop - len(ids), stop, prefix)
            for (ids, prefix), stop in zip(parts, stops, strict=True)
        ]
        layout = Layout(segments, past, keep=keep)
        hidden = split.packed(torch.cat([ids for ids, _ in parts]), layout)
        return torch.split(split.lm_head.logits(hidden), [len(ids) for ids, _ in parts])

    plain, shared = (0, 0), (0, len(prompt))
    start, begun, short, apart = run(
        (prompt, plain), (first, shared), (second, shared), (other, plain)
    )
    past = Past(len(one))
    half = len(first) // 2
    [kept] = run((prompt, plain), past=past, keep=True)
    [after, _] = run((second, plain), (first, plain), past=past)
    [chunk] = run((first[:half], plain), past=past, keep=True)
    [last] = run((first[half:], plain), past=past, keep=True)
    return [
        [torch.cat([start, begun]), torch.cat([start, short]), apart],
        [torch.cat([kept, chunk, last]), torch.cat([kept, after]), apart],
    ]


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
