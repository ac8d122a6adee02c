"""What a store's listing says of a run's objects, in some 60 bytes each."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from dlogp_ray import store
from dlogp_ray.tables.object_names import object_index, unit_index, unit_name

_SCHEMA = pa.schema({"index": pa.int64(), "size_bytes": pa.int64(), "etag": pa.string()})
_BATCH = 10_000


class Committed(Mapping[str, store.Entry]):
    """Units whose object is there, in order: unit -> what the listing says of it.

    Args:
        listing: Names and entries, as they come; what is not a unit's is left out.
    """

    def __init__(self, listing: Iterable[tuple[str, store.Entry]]) -> None:
        """Read the listing to its end."""
        rows = (
            {"index": index, "size_bytes": entry.size, "etag": entry.etag}
            for name, entry in listing
            if (index := object_index(name)) is not None
        )
        batches = [pa.RecordBatch.from_pylist([], schema=_SCHEMA)]
        while batch := list(islice(rows, _BATCH)):
            batches.append(pa.RecordBatch.from_pylist(batch, schema=_SCHEMA))
        self._table = pa.Table.from_batches(batches).sort_by("index").combine_chunks()

    @property
    def index(self) -> Any:
        """The units' indices: an array of int64 that ascends."""
        return self._table["index"].to_numpy()

    def __len__(self) -> int:
        """How many objects."""
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[str]:
        """The units' names in order."""
        return map(unit_name, self.index.tolist())

    def __getitem__(self, unit: str) -> store.Entry:
        """What the listing says of a unit's object."""
        index = unit_index(unit)
        if index is None:
            raise KeyError(unit)
        at = int(np.searchsorted(self.index, index))
        if at == len(self) or self.index[at] != index:
            raise KeyError(unit)
        return store.Entry(self._table["size_bytes"][at].as_py(), self._table["etag"][at].as_py())
