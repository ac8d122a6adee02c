"""What a store's listing says of a run's objects, in some 60 bytes each."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from dlogp_ray import store

UNIT = re.compile(r"part-(\d{8}|[1-9]\d{8,})")
"""Names that units have; the digits are the unit's index."""

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
            {"index": int(found[1]), "size_bytes": entry.size, "etag": entry.etag}
            for name, entry in listing
            if name.endswith(".parquet")
            and (found := UNIT.fullmatch(name.removesuffix(".parquet")))
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
        return (f"part-{index:08d}" for index in self.index.tolist())

    def __getitem__(self, unit: str) -> store.Entry:
        """What the listing says of a unit's object."""
        found = UNIT.fullmatch(unit)
        if found is None:
            raise KeyError(unit)
        index = int(found[1])
        at = int(np.searchsorted(self.index, index))
        if at == len(self) or self.index[at] != index:
            raise KeyError(unit)
        return store.Entry(self._table["size_bytes"][at].as_py(), self._table["etag"][at].as_py())
