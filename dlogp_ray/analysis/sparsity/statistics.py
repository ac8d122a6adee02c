"""Where, in which direction and how sparsely RL changed the policy: the statistics of one group.

What is kept of the tokens adds up (``+``), so that shards are looked at once, anywhere, in any
order; figures come from the sum. A group is the text of one generator under one compared policy.
Thresholds and figures: arXiv 2603.22117 (D) and 2603.22446 (S); logs in nats.

Shapes: s samples, t tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np

from dlogp_ray.analysis.estimates import t975
from dlogp_ray.analysis.sparsity.bins import Bins, gini
from dlogp_ray.analysis.sparsity.folds import FOLDS, folds_of, jackknife_error, without_each
from dlogp_ray.analysis.sparsity.quantiles import COARSE, Quantiles
from dlogp_ray.analysis.sparsity.ratios import Figure, Key, Part, Ratios
from dlogp_ray.analysis.sparsity.shifted import Shifted
from dlogp_ray.analysis.sparsity.tokens import Tokens
from dlogp_ray.analysis.summary import DELTA_THRESHOLDS, DIVERGENCE_THRESHOLDS

COLUMNS = (
    "response_ids",
    "logp_base",
    "logp_rl",
    "delta_logp",
    "entropy_base",
    "entropy_rl",
    "kl_rl_base",
    "kl_base_rl",
    "js",
    "top1_agree",
    "logp_base_of_rl_top1",
    "rank_base_of_rl_top1",
)
"""Of the scores table, that figures are made of."""

HIGH_JS = 0.1
"""S: where the policies differ."""
UNLIKELY = 0.01
"""S: a base probability of the RL policy's first choice below which it was invented."""
TOP = 10
PLACES = 20
"""Bins of the place in a response, from 0 to 1."""
POSITION_EDGES = np.array([0, *(2**power for power in range(20))])
"""Of the position from the start; doubling."""
ENTROPY_EDGES = np.array([0.0, 0.01, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0])
"""Of the base's entropy; the last bin is open."""
QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
"""The outermost are the smallest and the largest value."""
PLACE_QUANTILES = (0.5, 0.9, 0.99)
TOP_SHARES = (0.01, 0.05, 0.1, 0.2)
"""Of the tokens, in the concentration of Σ |Δlog p|."""

HISTOGRAMS: Mapping[str, np.ndarray] = {
    "delta_logp": np.linspace(-10, 10, 401),
    "kl_rl_base": np.geomspace(1e-8, 100, 201),
    "js": np.geomspace(1e-8, 1, 161),
    "entropy_base": np.linspace(0, 12, 241),
    "entropy_rl": np.linspace(0, 12, 241),
}
"""Edges of each statistic's bins; what lies outside counts in the outermost."""
JOINT = ("js", "abs_delta_logp")
"""Statistics that are counted by the base's entropy as well."""
JOINT_EDGES = np.geomspace(1e-6, 10, 71)
FLOORS = (
    *(1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    *(0.01, 0.03, 0.1, 0.3, 1.0),
)
"""From where Δlog p counts as raised or lowered, for runs whose own noise floors differ."""
MEANS = (
    *("delta_logp", "abs_delta_logp", "kl_rl_base", "kl_base_rl", "js"),
    *("entropy_base", "entropy_rl", "logp_base", "logp_rl", "top1_agree"),
    *("delta_p", "delta_p_squared"),
)
DIVERGENCES = ("kl_rl_base", "kl_base_rl", "js")
OVER_PLACES = ("delta_logp", "abs_delta_logp", "kl_rl_base", "js", "entropy_base")
BY_ENTROPY = ("delta_logp", "abs_delta_logp", "kl_rl_base", "js")
WITH_QUANTILES = (
    *("delta_logp", "kl_rl_base", "kl_base_rl", "js"),
    *("entropy_base", "entropy_rl", "delta_p"),
)
PLACES_WITH_QUANTILES = ("abs_delta_logp", "js")


@dataclass(frozen=True)
class Statistics:
    """What is kept of a group's tokens.

    Attributes:
        samples: Those that have tokens that count.
        tokens: Their tokens.
        ratios: Shares and means.
        histograms: Statistic -> [b] counts in the bins of ``HISTOGRAMS``.
        joint: Statistic of ``JOINT`` -> [e, b] counts by ``ENTROPY_EDGES`` and ``JOINT_EDGES``.
        quantiles: Statistic -> its tokens by leading bits.
        place_quantiles: Statistic -> the same, in each of ``PLACES`` bins of the response.
        magnitude: |Δlog p|, with its sums.
        surprisal: Policy's column -> −log p, with the sums of 1 − p and of Δlog p.
        shifted: By vocabulary id.
    """

    samples: int
    tokens: int
    ratios: Ratios
    histograms: Mapping[str, np.ndarray]
    joint: Mapping[str, np.ndarray]
    quantiles: Mapping[str, Quantiles]
    place_quantiles: Mapping[str, tuple[Quantiles, ...]]
    magnitude: Bins
    surprisal: Mapping[str, Bins]
    shifted: Shifted

    @classmethod
    def of(cls, tokens: Tokens, floors: Mapping[str, float]) -> Self:
        """Of some samples' tokens.

        Args:
            tokens: With a base policy's columns and Δlog p; others where the run has them.
            floors: Statistic -> a magnitude up to here is unresolved, nats; 0 for any other.
        """
        values = measured(tokens)
        sample_folds = folds_of(tokens.sample_ids)
        folds = sample_folds[tokens.sample]
        places, _ = _places(values)
        delta = values["delta_logp"]
        quantiles = {
            name: Quantiles.of(values[name], folds, len(tokens.lengths))
            for name in WITH_QUANTILES
            if name in values
        }
        return cls(
            samples=len(tokens.lengths),
            tokens=len(tokens),
            ratios=Ratios.of(parts(tokens, values, floors), sample_folds),
            histograms={
                name: _histogram(values[name], edges)
                for name, edges in HISTOGRAMS.items()
                if name in values
            },
            joint={
                name: _joint(values["entropy_base"], values[name])
                for name in JOINT
                if name in values and "entropy_base" in values
            },
            quantiles=quantiles,
            place_quantiles={
                name: tuple(_by_place(values[name], folds, tokens, places))
                for name in PLACES_WITH_QUANTILES
                if name in values
            },
            magnitude=Bins.of(values["abs_delta_logp"], (values["abs_delta_logp"],), folds),
            surprisal={
                name: Bins.of(-values[name], (-np.expm1(values[name]), delta), folds)
                for name in ("logp_base", "logp_rl")
            },
            shifted=Shifted.of(values["response_ids"], delta),
        )

    def __add__(self, other: Self) -> Self:
        """Of both."""
        return type(self)(
            self.samples + other.samples,
            self.tokens + other.tokens,
            self.ratios + other.ratios,
            _added(self.histograms, other.histograms),
            _added(self.joint, other.joint),
            _added(self.quantiles, other.quantiles),
            {
                name: tuple(a + b for a, b in zip(mine, other.place_quantiles[name], strict=True))
                for name, mine in self.place_quantiles.items()
            },
            self.magnitude + other.magnitude,
            _added(self.surprisal, other.surprisal),
            self.shifted + other.shifted,
        )

    def figures(self) -> dict[Key, Figure]:
        """All figures: (statistic, figure, at) -> value, error, interval."""
        rows = self.ratios.figures()
        for name, quantiles in self.quantiles.items():
            for share, figure in zip(QUANTILES, quantiles.figures(QUANTILES), strict=True):
                rows[name, "quantile", share] = figure
        for name, over_places in self.place_quantiles.items():
            for place, quantiles in enumerate(over_places):
                at_places = quantiles.figures(PLACE_QUANTILES)
                for share, figure in zip(PLACE_QUANTILES, at_places, strict=True):
                    key = f"quantile_{share:g}_at_relative_position"
                    rows[name, key, place / PLACES] = figure
        rows.update(self._concentration())
        for policy, bins in self.surprisal.items():
            rows.update(self._deciles(policy, bins))
        return rows

    def _concentration(self) -> Iterator[tuple[Key, Figure]]:
        bins = self.magnitude

        def share_in(share: float, folds: np.ndarray) -> float:
            total = float(bins.sums[0, folds].sum())
            return bins.of_the_first(share, folds, 0, largest=True) / total if total else 0.0

        for share in TOP_SHARES:
            key = ("abs_delta_logp", "share_of_sum_in_top", share)
            yield key, self._jackknifed(partial(share_in, share), bins)

        def gini_of(folds: np.ndarray) -> float:
            return gini(bins.counts[folds].sum(0), bins.sums[0, folds].sum(0))

        if bins.sums.any():
            yield ("abs_delta_logp", "gini", None), self._jackknifed(gini_of, bins)

    def _deciles(self, policy: str, bins: Bins) -> Iterator[tuple[Key, Figure]]:
        def in_decile(decile: int, which: int, folds: np.ndarray) -> float:
            first, last = (
                bins.of_the_first(share / 10, folds, which, largest=True)
                for share in (decile - 1, decile)
            )
            whole = bins.sums[which, folds].sum() if which == 0 else bins.counts[folds].sum() / 10
            return float((last - first) / whole) if whole else 0.0

        for which, name in ((0, "gradient_share_of_decile"), (1, "delta_logp_of_decile")):
            for decile in range(1, 11):
                key = (policy, name, float(decile))
                yield key, self._jackknifed(partial(in_decile, decile, which), bins)

    def _jackknifed(self, figure: Callable[[np.ndarray], float], bins: Bins) -> Figure:
        occupied = bins.occupied
        value = figure(occupied)
        without = without_each(figure, occupied) if len(occupied) > 1 else []
        se = jackknife_error(without)
        if se is None or self.samples < 2:
            return Figure(value, None, None, None, self.tokens, self.samples)
        half = t975(len(occupied) - 1) * se
        by_fold = dict(zip(occupied.tolist(), without, strict=True))
        each = tuple(by_fold.get(fold) for fold in range(FOLDS))
        return Figure(value, se, value - half, value + half, self.tokens, self.samples, each)


def measured(tokens: Tokens) -> dict[str, np.ndarray]:
    """All columns, and those that follow from them.

    ``abs_delta_logp``, and ``delta_p`` = π_RL(y) − π_base(y) (llama.cpp's Δp) with its square.
    """
    values = dict(tokens.columns)
    for name in ("logp_base", "logp_rl", "delta_logp"):
        values[name] = values[name].astype(np.float64)
    values["abs_delta_logp"] = np.abs(values["delta_logp"])
    values["delta_p"] = np.exp(values["logp_rl"]) - np.exp(values["logp_base"])
    values["delta_p_squared"] = values["delta_p"] ** 2
    return values


def parts(
    tokens: Tokens, values: Mapping[str, np.ndarray], floors: Mapping[str, float]
) -> Iterator[Part]:
    """What the samples add to each share and mean: keys are (statistic, figure, at)."""
    n, each = tokens.lengths.astype(np.float64), tokens.per_sample
    for name in MEANS:
        if name in values:
            yield Part((name, "mean", None), each(values[name]), n)
    delta, magnitude = values["delta_logp"], values["abs_delta_logp"]
    floor = floors.get("delta_logp", 0.0)
    for name, where in (
        ("share_raised", delta > floor),
        ("share_lowered", delta < -floor),
        ("share_unresolved", magnitude <= floor),
    ):
        yield Part(("delta_logp", name, None), each(where), n)
    for least in FLOORS:
        yield Part(("delta_logp", "share_raised_above", least), each(delta > least), n)
        yield Part(("delta_logp", "share_lowered_above", least), each(delta < -least), n)
    for threshold in DELTA_THRESHOLDS:
        yield Part(("abs_delta_logp", "share_above", threshold), each(magnitude > threshold), n)
    for name in DIVERGENCES:
        if name in values:
            unresolved = values[name] <= floors.get(name, 0.0)
            yield Part((name, "share_unresolved", None), each(unresolved), n)
            for threshold in DIVERGENCE_THRESHOLDS:
                yield Part((name, "share_above", threshold), each(values[name] > threshold), n)
    yield from _over_bins(
        tokens, values, OVER_PLACES, "mean_at_relative_position", *_places(values)
    )
    yield from _over_bins(tokens, values, OVER_PLACES, "mean_at_position", *_positions(values))
    if "entropy_base" in values:
        bins = _bins(values["entropy_base"], ENTROPY_EDGES)
        yield from _over_bins(
            tokens, values, BY_ENTROPY, "mean_at_entropy_base", bins, ENTROPY_EDGES
        )
    if "js" in values:
        yield from _choices(tokens, values)


def _choices(tokens: Tokens, values: Mapping[str, np.ndarray]) -> Iterator[Part]:
    """S: where the policies differ, what the RL policy's first choice is to the base."""
    high = values["js"] > HIGH_JS
    n = tokens.per_sample(high)
    for k in range(1, TOP + 1):
        inside = high & (values["rank_base_of_rl_top1"] < k)
        yield Part(("rank_base_of_rl_top1", "share_in_top", float(k)), tokens.per_sample(inside), n)
    unlikely = high & (values["logp_base_of_rl_top1"] < np.log(UNLIKELY))
    key = ("logp_base_of_rl_top1", "share_of_p_below", UNLIKELY)
    yield Part(key, tokens.per_sample(unlikely), n)


def _over_bins(
    tokens: Tokens,
    values: Mapping[str, np.ndarray],
    names: Sequence[str],
    figure: str,
    bins: np.ndarray,
    starts: np.ndarray,
) -> Iterator[Part]:
    """The mean of some statistics in each bin of another one."""
    n = tokens.per_sample_and_bin(bins, len(starts))
    for name in names:
        if name in values:
            y = tokens.per_sample_and_bin(bins, len(starts), values[name])
            for index, start in enumerate(starts.tolist()):
                yield Part((name, figure, start), y[index], n[index])


def _places(values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    bins = np.floor(values["relative_position"] * PLACES).astype(np.int64)
    return bins, np.arange(PLACES) / PLACES


def _positions(values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return _bins(values["position"], POSITION_EDGES), POSITION_EDGES.astype(np.float64)


def _bins(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The bin of each value; the first and the last one are open."""
    bins: np.ndarray = np.clip(
        np.searchsorted(starts, values, side="right") - 1, 0, len(starts) - 1
    )
    return bins


def _histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.bincount(_bins(values, edges[:-1]), minlength=len(edges) - 1)


def _joint(entropy: np.ndarray, values: np.ndarray) -> np.ndarray:
    columns = len(JOINT_EDGES) - 1
    at = _bins(entropy, ENTROPY_EDGES) * columns + _bins(values, JOINT_EDGES[:-1])
    return np.bincount(at, minlength=len(ENTROPY_EDGES) * columns).reshape(-1, columns)


def _by_place(
    values: np.ndarray, folds: np.ndarray, tokens: Tokens, places: np.ndarray
) -> Iterator[Quantiles]:
    samples = np.count_nonzero(tokens.per_sample_and_bin(places, PLACES), axis=1)
    for place in range(PLACES):
        there = places == place
        yield Quantiles.of(values[there], folds[there], int(samples[place]), COARSE)


def _added(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value + theirs[name] for name, value in mine.items()}
