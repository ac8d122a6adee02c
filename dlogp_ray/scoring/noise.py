"""The noise floor: what the table shows where nothing has changed.

Rounding depends on which tokens share a forward pass: matrix products of other shapes add in
another order. A sample of the corpus is therefore scored under two compositions of its batches:

    together   as the job does it: side by side under its token budget, equal prompts once
    alone      each text by itself, its first token in a pass of its own, then the rest on that past

The first token is what makes the second one differ: a product of one row is another kernel than one
of many, and all tokens look back on its result. On a CPU (four models, float32 and bfloat16), texts
in two halves kept the bits of 99 % of log p in three of eight cases; with the first token apart, 11
to 100 % changed, by 0.6 to 1 times what a pass for every token changes (RMS).

Two differences are taken, token by token:

    rebatched          each column of the table under the one against the same under the other
    base against base  the base under the one composition as ``base``, and under the other as the
                       RL policy: what Δlog p, KL and JS show for a policy that did not change

The 99th percentile of |Δlog p|, base against base, is the figure for people. A Δ below it is
"unresolved", not "zero": at most 1 % of the tokens that did not change at all lie above it, and
below it a change can't be told from rounding. As in the job, both sets of hidden states go through
the lm head in one call.

A base that can't run over a past is only taken alone, which may change little. One whose texts
can't share a pass at all has one composition only: against itself it is exactly 0.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dlogp_ray.scoring.packing import TokenSequence
from dlogp_ray.scoring.scorer import Arrays, PairScorer
from dlogp_ray.scoring.unit import table_columns
from dlogp_ray.tables.noise import NoiseFloor, Spread
from dlogp_ray.tables.schemas import STATISTICS

_CHANGE = ("delta_logp", "kl_rl_base", "kl_base_rl", "js")
"""Columns that are 0 where two policies are equal."""
_AGAIN = "base again"
"""No policy of a job is called so: there is a space in it."""


def measure_noise(scorer: PairScorer, texts: Sequence[TokenSequence]) -> NoiseFloor:
    """Score ``texts`` under two compositions, and the base against itself.

    Args:
        scorer: The job's own.
        texts: At least one.

    Returns:
        Spreads in the columns' own unit (nats), over all response tokens; none of statistics that
        the scorer leaves out.
    """
    targets = np.concatenate([text.response_ids for text in texts])
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
    rebatched, changed = {}, {}
    for policy in [name for name in first if name != base]:
        rebatched[policy], changed[policy] = compare(
            table_columns(first, policy, base), table_columns(second, policy, base)
        )
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
    )


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
    found = {}
    for name, values in differences.items():
        finite = np.abs(values[np.isfinite(values)].astype(np.float64))
        if len(finite):
            found[name] = Spread(
                rms=float(np.sqrt(np.mean(finite**2))),
                # The smallest value that at most 1 % of the tokens exceed.
                p99=float(np.quantile(finite, 0.99, method="inverted_cdf")),
            )
    return found


def _joined(parts: Sequence[dict[str, Arrays]]) -> dict[str, Arrays]:
    return {
        policy: {key: np.concatenate([part[policy][key] for part in parts]) for key in columns}
        for policy, columns in parts[0].items()
    }
