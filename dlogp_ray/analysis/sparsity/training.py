"""Against training time: how the log p of each token moves over an RL run's checkpoints.

A run that scores one text with several checkpoints of known step has log p of every token at every
step, the base's at step 0. Of each token: how much of its movement a straight line over steps
explains (R²; arXiv 2601.04537 finds log p of RLVR close to linear in steps), and the step by which
it has gone half of its way.

Shapes: c checkpoints in ascending order, the base first; t tokens; s samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from dlogp_ray.analysis.sparsity.ratios import Part, Ratios
from dlogp_ray.analysis.sparsity.tokens import Tokens

MOVED_NATS = 0.5
"""|Δlog p| at the last checkpoint from which on a token has moved."""
LINEAR = (0.7, 0.9)
"""R² from which on a token's movement counts as linear."""
R2_BINS = 50


def r_squared(
    logp: Float[np.ndarray, "c t"], steps: Float[np.ndarray, " c"]
) -> Float[np.ndarray, " t"]:
    """R² of the least-squares line through each token's log p over steps; NaN where it is constant.

    R² = (Σ (s − s̄)(x − x̄))² / (Σ (s − s̄)² · Σ (x − x̄)²)
    """
    s, x = steps - steps.mean(), logp - logp.mean(0)
    variance = (x * x).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        r_squared: np.ndarray = (s @ x) ** 2 / ((s @ s) * variance)
    r_squared[variance == 0] = np.nan
    return r_squared


def half_way(delta: Float[np.ndarray, "c t"]) -> Int[np.ndarray, " t"]:
    """The first checkpoint at which each token has gone half of the way that it has gone at last.

    Args:
        delta: Δlog p against the base at each checkpoint, the base's own zeros first.
    """
    last = delta[-1]
    gone = delta * np.sign(last) >= np.abs(last) / 2
    first: np.ndarray = gone.argmax(0)
    return first


@dataclass(frozen=True)
class Moved:
    """Vocabulary ids whose tokens have moved, and when.

    Attributes:
        ids: [i] ascending.
        counts: [i, c] tokens that were half way first at each checkpoint.
    """

    ids: Int[np.ndarray, " i"]
    counts: Int[np.ndarray, "i c"]

    @classmethod
    def of(cls, ids: Int[np.ndarray, " t"], checkpoints: Int[np.ndarray, " t"], count: int) -> Self:
        """Of some tokens that have moved."""
        tokens, which = np.unique(ids, return_inverse=True)
        at = np.bincount(which * count + checkpoints, minlength=len(tokens) * count)
        return cls(tokens, at.reshape(len(tokens), count))

    def __add__(self, other: Self) -> Self:
        """Of both."""
        ids, which = np.unique(np.concatenate([self.ids, other.ids]), return_inverse=True)
        counts = np.zeros((len(ids), self.counts.shape[1]), dtype=np.int64)
        np.add.at(counts, which, np.concatenate([self.counts, other.counts]))
        return type(self)(ids, counts)


@dataclass(frozen=True)
class Training:
    """What is kept of tokens that were scored by a base and at least two checkpoints of it.

    Attributes:
        steps: [c] training steps, 0 for the base.
        ratios: Shares and means over tokens.
        r2_histogram: [b] tokens by R², from 0 to 1; of those that have moved.
        moved: By vocabulary id; of the same tokens.
    """

    steps: tuple[int, ...]
    ratios: Ratios
    r2_histogram: Int[np.ndarray, " b"]
    moved: Moved

    def __add__(self, other: Self) -> Self:
        """Of both.

        Raises:
            ValueError: They are of other checkpoints.
        """
        if self.steps != other.steps:
            raise ValueError(f"expected checkpoints {self.steps}, got {other.steps}")
        return type(self)(
            self.steps,
            self.ratios + other.ratios,
            self.r2_histogram + other.r2_histogram,
            self.moved + other.moved,
        )

    @classmethod
    def of(
        cls,
        tokens: Tokens,
        logp: Float[np.ndarray, "c t"],
        steps: Sequence[int],
        floor: float,
    ) -> Self:
        """Of some samples' tokens.

        Args:
            tokens: Whose; any one checkpoint's.
            logp: At each checkpoint, the base first.
            steps: [c], 0 for the base.
            floor: |Δlog p| up to here is unresolved; a token that never leaves it has no R².
        """
        logp = logp.astype(np.float64)
        delta = logp - logp[0]
        resolved = np.abs(delta).max(0) > floor
        moved = np.abs(delta[-1]) > MOVED_NATS
        r2 = np.where(resolved, np.nan_to_num(r_squared(logp, np.array(steps, np.float64))), 0.0)
        half = half_way(delta)
        return cls(
            tuple(steps),
            Ratios.of(_parts(tokens, delta, steps, r2, resolved, moved, half)),
            np.histogram(r2[moved], R2_BINS, (0.0, 1.0))[0],
            Moved.of(tokens.columns["response_ids"][moved], half[moved], len(steps)),
        )


def _parts(
    tokens: Tokens,
    delta: np.ndarray,
    steps: Sequence[int],
    r2: np.ndarray,
    resolved: np.ndarray,
    moved: np.ndarray,
    half: np.ndarray,
) -> list[Part]:
    each, n = tokens.per_sample, tokens.lengths.astype(np.float64)
    parts = [Part(("logp", "share_moved", MOVED_NATS), each(moved), n)]
    for name, where in (("resolved", resolved), ("moved", moved)):
        there = each(where)
        parts.append(Part(("logp", f"mean_r_squared_of_{name}", None), each(r2 * where), there))
        for least in LINEAR:
            linear = each(where & (r2 >= least))
            parts.append(Part(("logp", f"share_linear_of_{name}", least), linear, there))
    there = each(moved)
    for index, step in enumerate(steps):
        gone = each(moved & (half <= index))
        parts.append(Part(("logp", "share_of_moved_half_way_by_step", float(step)), gone, there))
    return parts


def trainings(rows: pa.Table, floor: float) -> Mapping[str | None, Training]:
    """By generator; empty without two checkpoints of known step.

    Only samples that were scored under every checkpoint count.

    Args:
        rows: Of one object, with Δlog p.
        floor: As ``Training.of``.
    """
    paired = rows.filter(pc.is_valid(rows["step"]))
    steps = sorted(set(paired["step"].to_pylist()))
    if len(steps) < 2:
        return {}
    by_generator: dict[str | None, Training] = {}
    for generator in paired["generator"].unique().to_pylist():
        column = paired["generator"]
        mine = pc.is_null(column) if generator is None else pc.equal(column, generator)
        own = paired.filter(mine)
        counts = own.group_by("sample_id").aggregate([("step", "count_distinct")])
        whole = counts.filter(pc.equal(counts["step_count_distinct"], len(steps)))["sample_id"]
        own = own.filter(pc.is_in(own["sample_id"], whole.combine_chunks()))
        by_step = [
            Tokens.of(own.filter(pc.equal(own["step"], step)).sort_by("sample_id"))
            for step in steps
        ]
        if len(by_step[0]):
            logp = np.stack(
                [
                    by_step[0].columns["logp_base"],
                    *(tokens.columns["logp_rl"] for tokens in by_step),
                ]
            )
            by_generator[generator] = Training.of(by_step[0], logp, [0, *steps], floor)
    return by_generator
