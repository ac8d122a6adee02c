"""What schemes need of all rows of a table, as sums that add up whatever the split or the order.

The (1 − ρ) quantile of the entropy is exact: it is found in two passes over the column, by counting
the upper and then the lower 16 bits of the values' places in the order of all float32 numbers.
Groups' means are of all rows of a prompt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from dlogp_ray.tables.float_order import numbers, places
from dlogp_ray.weights.schemes import upper_quantile_rank

_BITS = 16


@dataclass(frozen=True)
class Counts:
    """How many values have which upper, or within one of these, which lower 16 bits."""

    bins: Int[np.ndarray, "65536"]

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"], upper: int | None = None) -> "Counts":
        """Count values; with ``upper``, the lower bits of those that have these upper ones."""
        keys = places(values)
        high = keys >> _BITS
        bits = high if upper is None else keys[high == upper] & np.uint32((1 << _BITS) - 1)
        return cls(np.bincount(bits, minlength=1 << _BITS))

    @classmethod
    def merge(cls, parts: Sequence["Counts"]) -> "Counts":
        """The sum; of none, nothing counted."""
        return cls(sum((part.bins for part in parts), np.zeros(1 << _BITS, np.int64)))

    def __len__(self) -> int:
        """Values counted."""
        return int(self.bins.sum())

    def place(self, rank: int) -> tuple[int, int]:
        """The bits of the value of a rank (from 0, ascending), and its rank among its like."""
        sums = np.cumsum(self.bins)
        bits = int(np.searchsorted(sums, rank, side="right"))
        return bits, rank - int(sums[bits] - self.bins[bits])


def quantile_upper(counts: Counts, rho: float) -> tuple[int, int]:
    """The upper bits of the (1 − ρ) quantile, and what is left of its rank below them."""
    return counts.place(upper_quantile_rank(len(counts), rho))


def quantile(upper: int, lower: Counts, rank: int) -> float:
    """The quantile itself, once the lower bits of its like are counted."""
    bits, _ = lower.place(rank)
    return float(numbers(np.array([upper << _BITS | bits], np.uint32))[0])


@dataclass(frozen=True)
class GroupSums:
    """Count, sum, sum of squares, least and greatest of one value a text, by group."""

    table: pa.Table

    @classmethod
    def of(cls, groups: pa.Array, values: Float[np.ndarray, " n"]) -> "GroupSums":
        """Sums of texts; ``groups`` are names."""
        value = pa.array(np.asarray(values, np.float64))
        columns = [
            groups.cast(pa.string()),
            pa.array(np.ones(len(value), np.int64)),
            value,
            pc.multiply(value, value),
            value,
            value,
        ]
        return cls.merge([cls(pa.table(columns, schema=cls.schema()))])

    @staticmethod
    def schema() -> pa.Schema:
        """Of the sums."""
        names = ("sum", "squares", "least", "greatest")
        floats = [pa.field(name, pa.float64()) for name in names]
        return pa.schema([pa.field("group", pa.string()), pa.field("count", pa.int64()), *floats])

    @classmethod
    def merge(cls, parts: Iterable["GroupSums"]) -> "GroupSums":
        """The sum, ordered by group; of none, no group."""
        whole = pa.concat_tables([cls.schema().empty_table(), *(part.table for part in parts)])
        # By one thread: sums of roundings depend on their order.
        added = whole.group_by("group", use_threads=False).aggregate(
            [
                ("count", "sum"),
                ("sum", "sum"),
                ("squares", "sum"),
                ("least", "min"),
                ("greatest", "max"),
            ]
        )
        return cls(added.rename_columns(cls.schema().names).sort_by("group").cast(cls.schema()))

    def moments(self, groups: pa.Array) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Mean and standard deviation (over n − 1) of each text's group.

        Of a group of one text, or of equal values, the deviation is 0 exactly; both are 0 of a
        group that is not there.
        """
        rows = self.table.take(pc.index_in(groups, value_set=self.table["group"].combine_chunks()))
        count, total, squares, least, greatest = (
            rows[name].fill_null(0).to_numpy() for name in self.table.column_names[1:]
        )
        mean = np.where(least == greatest, least, total / np.maximum(count, 1))
        variance = (squares - total * mean) / np.maximum(count - 1, 1)
        std = np.sqrt(np.where(least == greatest, 0.0, np.maximum(variance, 0.0)))
        return mean, std
