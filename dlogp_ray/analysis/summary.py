"""Mergeable summary of scored tokens: made where the data is, added up anywhere, in any order.

Every unit's object carries its own in the footer, so that the totals of a run cost one footer
read an object. Tokens whose ``response_mask`` is false are not counted; each figure is split by
policy and by the generator of the text.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from dlogp_ray.status import Status, count_rejected

DELTA_THRESHOLDS = (0.01, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0)
"""|Δlog p| in nats (arXiv 2603.22117)."""
DIVERGENCE_THRESHOLDS = (1e-4, 1e-3, 1e-2, 0.1)
"""KL and JS in nats (arXiv 2603.22446)."""
HISTOGRAM_LIMIT_NATS = 10.0
HISTOGRAM_BINS = 400
"""Of Δlog p: bins of 0.05 nats, the outermost open."""
_EDGES = np.linspace(-HISTOGRAM_LIMIT_NATS, HISTOGRAM_LIMIT_NATS, HISTOGRAM_BINS + 1)


class TokenSummary(BaseModel):
    """Counts and sums over the tokens of one policy and one generator.

    Attributes:
        samples: Scored rows.
        tokens: Their response tokens that count.
        delta_sum: Σ Δlog p, nats. 0 for a policy alone, like everything below.
        delta_abs_sum: Σ |Δlog p|, nats.
        raised: Tokens with Δlog p > 0.
        lowered: Tokens with Δlog p < 0.
        delta_above: Tokens with |Δlog p| above each of ``DELTA_THRESHOLDS``.
        kl_rl_base_above: Tokens with KL(π_RL ‖ π_base) above each of ``DIVERGENCE_THRESHOLDS``;
            0 where the run has the statistics of sampled tokens only.
        js_above: The same for the Jensen-Shannon divergence.
        delta_histogram: Tokens in each bin of Δlog p.
    """

    samples: int = 0
    tokens: int = 0
    delta_sum: float = 0.0
    delta_abs_sum: float = 0.0
    raised: int = 0
    lowered: int = 0
    delta_above: list[int] = [0] * len(DELTA_THRESHOLDS)
    kl_rl_base_above: list[int] = [0] * len(DIVERGENCE_THRESHOLDS)
    js_above: list[int] = [0] * len(DIVERGENCE_THRESHOLDS)
    delta_histogram: list[int] = [0] * HISTOGRAM_BINS

    def __add__(self, other: Self) -> Self:
        """The summary of both sets of tokens."""
        mine, theirs = self.model_dump(), other.model_dump()
        return type(self).model_validate(
            {
                key: [a + b for a, b in zip(value, theirs[key], strict=True)]
                if isinstance(value, list)
                else value + theirs[key]
                for key, value in mine.items()
            }
        )


class Summary(BaseModel):
    """What a set of score rows holds.

    Attributes:
        rows: All rows, rejected ones included.
        status: Rows by status.
        special_tokens: Rows of the corpus by what is special about them, as
            ``tables.special_tokens`` names it; not told by rows of the table.
        groups: Per policy, per generator ("" where the corpus names none).
    """

    rows: int = 0
    status: dict[str, int] = {}
    special_tokens: dict[str, int] = {}
    groups: dict[str, dict[str, TokenSummary]] = {}

    def __add__(self, other: Self) -> Self:
        """The summary of both sets of rows."""
        status = Counter(self.status) + Counter(other.status)
        special_tokens = Counter(self.special_tokens) + Counter(other.special_tokens)
        groups = {policy: dict(generators) for policy, generators in self.groups.items()}
        for policy, generators in other.groups.items():
            mine = groups.setdefault(policy, {})
            for generator, summary in generators.items():
                mine[generator] = mine[generator] + summary if generator in mine else summary
        return type(self)(
            rows=self.rows + other.rows,
            status=status,
            special_tokens=special_tokens,
            groups=groups,
        )

    @property
    def rejected(self) -> int:
        """Rows whose status is not ok."""
        return count_rejected(self.status)

    @property
    def tokens(self) -> int:
        """Response tokens that count, over all policies."""
        return sum(s.tokens for generators in self.groups.values() for s in generators.values())

    @classmethod
    def merge(cls, summaries: Iterable[Self]) -> Self:
        """The summary of all sets of rows."""
        return sum(summaries, start=cls())


def summarise(scores: pa.Table) -> Summary:
    """The summary of score rows, by ``tables.scores.scores_schema``, as far as they tell."""
    summary = Summary(
        rows=len(scores),
        status={
            pair["values"]: pair["counts"]
            for pair in pc.value_counts(scores["status"].combine_chunks()).to_pylist()
        },
    )
    scored = scores.filter(pc.equal(scores["status"], Status.OK))
    generator = pc.fill_null(scored["generator"], "")
    for policy in sorted(set(scored["policy"].to_pylist())):
        for name in sorted(set(generator.to_pylist())):
            chosen = pc.and_(pc.equal(scored["policy"], policy), pc.equal(generator, name))
            rows = scored.filter(chosen)
            if len(rows):
                summary.groups.setdefault(policy, {})[name] = _token_summary(rows)
    return summary


def _token_summary(rows: pa.Table) -> TokenSummary:
    counted = _flat(rows, "response_mask")
    tokens = int(counted.sum())
    delta = _flat(rows, "delta_logp")
    if not len(delta):
        return TokenSummary(samples=len(rows), tokens=tokens)
    delta = delta[counted].astype(np.float64)
    bins = np.clip(np.searchsorted(_EDGES, delta, side="right") - 1, 0, HISTOGRAM_BINS - 1)
    return TokenSummary(
        samples=len(rows),
        tokens=tokens,
        delta_sum=float(delta.sum()),
        delta_abs_sum=float(np.abs(delta).sum()),
        raised=int((delta > 0).sum()),
        lowered=int((delta < 0).sum()),
        delta_above=[int((np.abs(delta) > t).sum()) for t in DELTA_THRESHOLDS],
        kl_rl_base_above=_above(_flat(rows, "kl_rl_base"), counted),
        js_above=_above(_flat(rows, "js"), counted),
        delta_histogram=np.bincount(bins, minlength=HISTOGRAM_BINS).tolist(),
    )


def _above(divergence: np.ndarray, counted: np.ndarray) -> list[int]:
    if not len(divergence):  # not computed
        return [0] * len(DIVERGENCE_THRESHOLDS)
    return [int((divergence[counted] > t).sum()) for t in DIVERGENCE_THRESHOLDS]


def _flat(rows: pa.Table, column: str) -> np.ndarray:
    return np.asarray(rows[column].combine_chunks().flatten().to_numpy(zero_copy_only=False))
