"""Which responses the report shows: those that moved most, and some by chance, of every group.

They add up over any number of objects: of two sets the first of each kind stay, ``PER_GROUP`` or
as many as have ``TOKENS_PER_GROUP`` together. What is first of both was first in its own set.
"""

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PER_GROUP = 40
TOKENS_PER_GROUP = 100_000
"""Of each kind, of each policy and generator."""
MOST_TOKENS = 200_000
"""That are shown, of all together: with them a page is under 5 MB."""
_WHOSE = ("kind", "policy", "generator")


@dataclass(frozen=True)
class Examples:
    """Rows of the scores table to show.

    Attributes:
        rows: With ``kind`` (``moved``: the largest Σ |Δlog p|; ``random``: by a hash of the
            sample's id) and ``rank``, those with the least first; None before the first.
    """

    rows: pa.Table | None = None

    @classmethod
    def of(cls, rows: pa.Table) -> Self:
        """Of some rows that have Δlog p."""
        sums = _sums(rows)
        chance = [float(zlib.crc32(b"shown " + s.encode())) for s in rows["sample_id"].to_pylist()]
        kinds = []
        for kind, rank in (("moved", -sums), ("random", np.array(chance, dtype=np.float64))):
            names = pa.array([kind] * len(rows), pa.string())
            ranked = rows.append_column("kind", names).append_column("rank", pa.array(rank))
            kinds.append(ranked.filter(pa.array(sums >= 0)))
        return cls(_first(pa.concat_tables(kinds)))

    def __add__(self, other: Self) -> Self:
        """Of both."""
        there = [part.rows for part in (self, other) if part.rows is not None]
        return type(self)(_first(pa.concat_tables(there)) if there else None)

    @classmethod
    def merge(cls, parts: Iterable[Self]) -> Self:
        """Of all."""
        return sum(parts, start=cls())

    def shown(self, most: int) -> pa.Table:
        """At most so many rows, each once, evenly of all groups and kinds.

        Fewer where their tokens would be more than ``MOST_TOKENS``, but for the first.
        """
        if self.rows is None:
            return pa.table({})
        places: Counter[tuple[str | None, ...]] = Counter()
        turns = []
        for whose in _groups(self.rows):
            turns.append(places[whose])
            places[whose] += 1
        taken: dict[tuple[str, str], int] = {}
        lengths, tokens = _lengths(self.rows), 0
        for index in np.argsort(turns, kind="stable").tolist():
            name = self.rows["policy"][index].as_py(), self.rows["sample_id"][index].as_py()
            if name in taken or (taken and tokens + lengths[index] > MOST_TOKENS):
                continue
            if len(taken) < most:
                taken[name] = index
                tokens += lengths[index]
        return self.rows.take(sorted(taken.values()))


def _first(rows: pa.Table) -> pa.Table:
    rows = rows.sort_by([("rank", "ascending"), ("sample_id", "ascending")])
    seen: Counter[tuple[str | None, ...]] = Counter()
    tokens: Counter[tuple[str | None, ...]] = Counter()
    kept = []
    for index, (whose, length) in enumerate(zip(_groups(rows), _lengths(rows), strict=True)):
        if seen[whose] < PER_GROUP and tokens[whose] < TOKENS_PER_GROUP:
            kept.append(index)
        seen[whose] += 1
        tokens[whose] += length
    # A copy: what is left out would stay in memory with what is kept.
    return rows.take(pa.array(kept, pa.int64())).combine_chunks()


def _lengths(rows: pa.Table) -> list[int]:
    lengths: list[int] = pc.list_value_length(rows["response_ids"]).to_pylist()
    return lengths


def _groups(rows: pa.Table) -> list[tuple[str | None, ...]]:
    return list(zip(*(rows[name].to_pylist() for name in _WHOSE), strict=True))


def _sums(rows: pa.Table) -> np.ndarray:
    """[r] Σ |Δlog p| over the tokens that count; −1 where there are none."""
    lengths = pc.list_value_length(rows["delta_logp"]).fill_null(0).to_numpy()
    row = np.repeat(np.arange(len(rows)), lengths)
    delta = np.abs(rows["delta_logp"].combine_chunks().flatten().to_numpy(zero_copy_only=False))
    mask = rows["response_mask"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    mask = np.asarray(mask, dtype=bool)
    sums = np.bincount(row[mask], delta[mask], len(rows))
    counts = np.bincount(row[mask], minlength=len(rows))
    return np.where(counts > 0, sums, -1.0)
