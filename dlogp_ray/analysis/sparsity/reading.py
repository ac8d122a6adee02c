"""One object of the scores table, read a little at a time: its statistics.

Imported by every process that reads, and so without torch.
"""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray.analysis.sparsity.groups import Grouped, columns_needed, grouped
from dlogp_ray.tables.objects import TableObject, open_object

_TOKENS_AT_ONCE = 100_000
"""With all their columns and what is computed of them some 60 MB."""


def read_object(
    part: TableObject, *, by: Sequence[str], floors: Mapping[str, float], policies: int
) -> Grouped:
    """The statistics of one object.

    Args:
        part: Which.
        by: Columns to split by.
        floors: As ``Statistics.of``.
        policies: Rows of each sample, which lie together.

    Raises:
        Damaged: It can't be read.
        Refused: There are too many groups.
    """
    parts = (grouped(rows, by, floors) for rows in _tables(part, by, policies))
    return Grouped.merge(parts)


def _tables(part: TableObject, by: Sequence[str], policies: int) -> Iterator[pa.Table]:
    """An object's rows, some at a time."""
    with open_object(part) as file:
        columns = columns_needed(by, file.schema_arrow.names)
        rows = _rows_at_once(file.metadata, policies)
        for batch in file.iter_batches(rows, columns=columns):
            yield pa.Table.from_batches([batch])


def _rows_at_once(metadata: pq.FileMetaData, policies: int) -> int:
    """Rows with about ``_TOKENS_AT_ONCE`` tokens, with all rows of each sample."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    tokens: int = sum(
        group.column(index).num_values
        for group in groups
        for index in range(group.num_columns)
        if group.column(index).path_in_schema.startswith("response_ids.")
    )
    samples: int = _TOKENS_AT_ONCE * metadata.num_rows // max(tokens, 1) // policies
    return max(1, samples) * policies
