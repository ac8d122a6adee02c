"""The tokens of score rows, sample after sample, as NumPy arrays.

Tokens whose ``response_mask`` is false are left out; a place in the response is counted over all.

Shapes: s samples, t tokens that count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, Shaped


@dataclass(frozen=True)
class Tokens:
    """Tokens of samples that have any.

    Attributes:
        sample_ids: [s].
        lengths: [s] tokens of each, at least 1.
        columns: Name -> [t]; a statistic that the run does not have is missing. With ``position``
            in the response, from 0, and ``relative_position`` in [0, 1).
    """

    sample_ids: tuple[str, ...]
    lengths: Int[np.ndarray, " s"]
    columns: Mapping[str, Shaped[np.ndarray, " t"]]

    @classmethod
    def of(cls, rows: pa.Table) -> Self:
        """The tokens of rows whose status is ok, by ``tables.scores.scores_schema``.

        Args:
            rows: With ``sample_id``, ``response_mask`` and list columns.
        """
        counts = _flat(rows["response_mask"])
        mask = np.asarray(counts, dtype=bool)
        whole = _lengths(rows["response_mask"])
        sample = np.repeat(np.arange(len(whole)), whole)
        kept = np.bincount(sample[mask], minlength=len(whole))
        columns: dict[str, np.ndarray] = {}
        for name in rows.column_names:
            column = rows[name]
            if pa.types.is_list(column.type) and name != "response_mask":
                values = _flat(column)
                if len(values) == len(mask):  # else not computed
                    columns[name] = values if mask.all() else values[mask]
        starts = np.cumsum(whole) - whole
        position = (np.arange(len(mask)) - starts[sample])[mask]
        columns["position"] = position
        columns["relative_position"] = position / whole[sample[mask]]
        names = rows["sample_id"].to_pylist()
        rows_kept = np.flatnonzero(kept)
        return cls(tuple(names[index] for index in rows_kept), kept[rows_kept], columns)

    def __len__(self) -> int:
        """t."""
        return int(self.lengths.sum())

    @cached_property
    def starts(self) -> Int[np.ndarray, " s"]:
        """The first token of each sample."""
        starts: np.ndarray = np.cumsum(self.lengths) - self.lengths
        return starts

    @cached_property
    def sample(self) -> Int[np.ndarray, " t"]:
        """The sample of each token."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def per_sample(self, values: Shaped[np.ndarray, " t"]) -> Float[np.ndarray, " s"]:
        """Σ over each sample's tokens; of truth values, how many are true."""
        sums: np.ndarray = np.add.reduceat(values, self.starts, dtype=np.float64)
        return sums

    def per_sample_and_bin(
        self, bins: Int[np.ndarray, " t"], count: int, values: Float[np.ndarray, " t"] | None = None
    ) -> Float[np.ndarray, "b s"]:
        """Σ over each sample's tokens in each bin; without values, how many there are."""
        samples = len(self.lengths)
        sums = np.bincount(bins * samples + self.sample, values, count * samples)
        return sums.reshape(count, samples).astype(np.float64)


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks().flatten()
    return np.asarray(flat.to_numpy(zero_copy_only=False))


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    lengths = pa.compute.list_value_length(column).fill_null(0)
    return np.asarray(lengths.to_numpy(), dtype=np.int64)
