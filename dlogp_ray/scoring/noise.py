"""The noise floor: what the table shows where nothing has changed.

Rounding depends on the dtype, and on which tokens share a forward pass: matrix products of other
shapes add in another order. A sample of the corpus is therefore scored under two compositions of
its batches, and a part of it, as much as there is time for, in float32:

    together   as the job does it: side by side under its token budget, equal prompts once
    alone      each text by itself, its first token in a pass of its own, then the rest on that past
    float32    together, of the same weights, which are cast a layer at a time

The first token is what makes the second one differ: a product of one row is another kernel than one
of many, and all tokens look back on its result. On a CPU (four models, float32 and bfloat16), texts
in two halves kept the bits of 99 % of log p in three of eight cases; with the first token apart, 11
to 100 % changed, by 0.6 to 1 times what a pass for every token changes (RMS).

Three differences are taken, token by token:

    rebatched          each column of the table under the one composition against the other
    base against base  the base under the one composition as ``base``, and under the other as the
                       RL policy: what Δlog p, KL and JS show for a policy that did not change
    rounding           each column in the job's dtype against that in float32

The 99th percentile of |Δlog p| is the figure for people, the largest of the three. A Δ below it is
"unresolved", not "zero": for at most 1 % of the tokens, another batch or float32 moves it by more.
Two compositions round alike where both round the same numbers, so that the first two do not show
what a dtype costs: on a pair in bfloat16 (SmolLM2-135M and its adapter) 5.6 % of the tokens were
farther from float32 than the base from itself, 4.5 % than other batches move Δ, and 1.1 % than the
third part of 64 texts says.

As in the job, both sets of hidden states go through the lm head in one call. A base that can't run
over a past is only taken alone, which may change little. One whose texts can't share a pass at all
has one composition only: against itself it is exactly 0.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dlogp_ray.policies.packing import TokenSequence, count_tokens
from dlogp_ray.scoring.products import float32_slowdown
from dlogp_ray.scoring.scorer import Arrays, PairScorer
from dlogp_ray.scoring.unit import table_columns
from dlogp_ray.tables.noise import NoiseFloor, Rounding, Spread, Spreads
from dlogp_ray.tables.scores import COLUMNS, STATISTICS

_CHANGE = tuple(column.name for column in COLUMNS if column.change)
"""Columns that are 0 where two policies are equal."""
Scored = dict[str, Arrays]
"""By policy, the statistics of some tokens."""
_Part = tuple[Sequence[TokenSequence], Scored, Scored]
"""Some texts, with their statistics in the job's dtype and in float32."""
_BEGINNING = 8
"""Response tokens that tell how long one takes."""
_AGAIN = "base again"
"""No policy of a job is called so: there is a space in it."""


ROUNDING_S = 15.0
"""What the third part may take of a short job; of a long one, ``ROUNDING_SHARE`` of its time."""
ROUNDING_SHARE = 0.05


def measure_noise(
    scorer: PairScorer, texts: Sequence[TokenSequence], rounding_s: float = ROUNDING_S
) -> NoiseFloor:
    """Score ``texts`` under two compositions and in float32, and the base against itself.

    Args:
        scorer: The job's own.
        texts: At least one.
        rounding_s: What scoring in float32 may take; as many of the first texts as that allows.

    Returns:
        Spreads in the columns' own unit (nats), over all response tokens; none of statistics that
        the scorer leaves out.
    """
    targets = _targets(texts)
    together = scorer.hidden(texts)
    alone = [_alone(scorer, text) for text in texts]
    first = scorer.statistics(together, targets)
    second = _joined(
        [
            scorer.statistics(hidden, text.response_ids)
            for hidden, text in zip(alone, texts, strict=True)
        ]
    )
    base = scorer.base
    rebatched, changed = _compare_policies(first, second, base)
    against = {}
    if base is not None:
        hidden = {base: together[base], _AGAIN: torch.cat([states[base] for states in alone])}
        pair = table_columns(scorer.base_twice(_AGAIN).statistics(hidden, targets), _AGAIN, base)
        against = _spreads({name: pair[name] for name in _CHANGE if name in pair})
    return NoiseFloor(
        texts=len(texts),
        tokens=len(targets),
        rebatched=rebatched,
        changed=changed,
        base_against_base=against,
        rounding=_measure_rounding(scorer, texts, rounding_s),
    )


def _measure_rounding(
    scorer: PairScorer, texts: Sequence[TokenSequence], seconds: float
) -> Rounding:
    dtype = scorer.lower_dtype
    if dtype is None:
        return Rounding()
    try:
        parts = _in_both_dtypes(scorer, texts, seconds, dtype)
    except Exception as error:  # noqa: BLE001  (whatever a model that can't be cast comes to)
        return Rounding(problem=f"{type(error).__name__}: {' '.join(str(error).split())}")
    if not parts:
        return Rounding(problem=f"a few tokens in float32 take longer than {seconds:.0f} s")
    scored, own, exact = zip(*parts, strict=True)
    spreads, _ = _compare_policies(_joined(own), _joined(exact), scorer.base)
    if not all(spreads.values()):
        return Rounding(problem="no number in float32 is finite")
    return Rounding(
        texts=sum(map(len, scored)),
        tokens=sum(len(_targets(part)) for part in scored),
        spreads=spreads,
    )


def _in_both_dtypes(
    scorer: PairScorer, texts: Sequence[TokenSequence], seconds: float, dtype: str
) -> list[_Part]:
    """As many of the first texts as there is time for.

    The beginning of the first one tells how long a token takes; it counts where there is no time
    for more of it.
    """
    started = time.monotonic()
    beginning = _cut(texts[0], _BEGINNING)
    hidden = scorer.hidden([beginning])
    own = scorer.statistics(hidden, beginning.response_ids)
    slowdown = float32_slowdown(dtype, next(iter(hidden.values())).device.type)
    if (time.monotonic() - started) * (1 + slowdown) > seconds:
        return []
    exact = scorer.statistics(scorer.hidden_in_float32([beginning]), beginning.response_ids)
    first = [beginning], own, exact
    token_s = (time.monotonic() - started) / count_tokens([beginning])
    parts: list[_Part] = []
    left = texts
    while part := _fitting(left, room := _tokens_in(seconds, started, token_s)):
        one, token_s = _in_both(scorer, part)
        parts.append(one)
        left = left[len(part) :]
    if not parts:
        longer = _cut(texts[0], room - len(beginning.prompt_ids))
        parts = [_in_both(scorer, [longer])[0] if len(longer.response_ids) > _BEGINNING else first]
    return parts


def _in_both(scorer: PairScorer, part: Sequence[TokenSequence]) -> tuple[_Part, float]:
    """Texts with their statistics in both dtypes, and the seconds that a token took."""
    before = time.monotonic()
    own, exact = (
        scorer.statistics(hidden(part), _targets(part))
        for hidden in (scorer.hidden, scorer.hidden_in_float32)
    )
    return (part, own, exact), (time.monotonic() - before) / count_tokens(part)


def _tokens_in(seconds: float, started: float, token_s: float) -> int:
    return int((seconds - (time.monotonic() - started)) / token_s)


def _fitting(texts: Sequence[TokenSequence], tokens: int) -> Sequence[TokenSequence]:
    ends = np.cumsum([count_tokens([text]) for text in texts])
    return texts[: int((ends <= tokens).sum())]


def _cut(text: TokenSequence, response_tokens: int) -> TokenSequence:
    return text._replace(response_ids=text.response_ids[: max(0, response_tokens)])


def _compare_policies(
    first: Scored, second: Scored, base: str | None
) -> tuple[Spreads, dict[str, dict[str, float]]]:
    """``compare`` of the rows of each policy but the base."""
    spreads, changed = {}, {}
    for policy in [name for name in first if name != base]:
        both = (table_columns(scored, policy, base) for scored in (first, second))
        spreads[policy], changed[policy] = compare(*both)
    return spreads, changed


def _targets(texts: Sequence[TokenSequence]) -> np.ndarray:
    return np.concatenate([text.response_ids for text in texts])


def _alone(scorer: PairScorer, text: TokenSequence) -> dict[str, Tensor]:
    ids = np.concatenate([text.prompt_ids, text.response_ids])
    # A "prompt" of one token that does not fit into one pass with what follows, by one.
    moved = TokenSequence(ids[:1], ids[1:])
    hidden = scorer.hidden([moved], token_budget=max(1, len(ids) - 2))
    return {name: states[-len(text.response_ids) :] for name, states in hidden.items()}


def compare(first: Arrays, second: Arrays) -> tuple[dict[str, Spread], dict[str, float]]:
    """Columns of the table under two compositions.

    Args:
        first: Column -> [n] values; what is no statistic of the table is left out.
        second: The same columns.

    Returns:
        The spread of each column of floats; the share of tokens that differ of each other one.
    """
    floats = [name for name in STATISTICS if name in first and first[name].dtype.kind == "f"]
    others = [name for name in STATISTICS if name in first and name not in floats]
    with np.errstate(invalid="ignore"):  # −inf − −inf
        spreads = _spreads({name: second[name] - first[name] for name in floats})
    return spreads, {name: float((first[name] != second[name]).mean()) for name in others}


def _spreads(differences: Arrays) -> dict[str, Spread]:
    """Of the finite differences: a row with any other value is rejected by the job."""
    spreads = {}
    for name, values in differences.items():
        finite = np.abs(values[np.isfinite(values)].astype(np.float64))
        if len(finite):
            spreads[name] = Spread(
                rms=float(np.sqrt(np.mean(finite**2))),
                # The smallest value that at most 1 % of the tokens exceed.
                p99=float(np.quantile(finite, 0.99, method="inverted_cdf")),
            )
    return spreads


def _joined(parts: Sequence[Scored]) -> Scored:
    return {
        policy: {key: np.concatenate([part[policy][key] for part in parts]) for key in columns}
        for policy, columns in parts[0].items()
    }
