"""Work units: the parts of a corpus that are scored, committed and lost one by one.

A unit is a range of rows of a Parquet file, a range of bytes of a JSONL file (a line belongs to the
range that holds its first byte), or one whole compressed file.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.tables.object_names import unit_name


@dataclass(frozen=True)
class Unit:
    """One work unit.

    Attributes:
        index: Its place in the list, from 0.
        file: Address of the corpus file.
        format: "parquet" or "jsonl".
        compression: Of the whole file, or None.
        start: First row (Parquet) or byte (JSONL).
        stop: The row or byte after the last.
        tokens: Prompt and response tokens, about.
        size_bytes: Of the file's part, as stored, about.
        file_bytes: Of the whole file.
        version: Of the file, as it was listed.
        source: Number of the corpus entry that names the file.
        state: As ``store.Entry``, of the call that listed it; in no record.
    """

    index: int
    file: str
    format: str
    compression: str | None
    start: int
    stop: int
    tokens: int
    size_bytes: int
    file_bytes: int
    version: str
    source: int = 0
    state: str = ""

    @property
    def file_entry(self) -> store.Entry:
        """The version of the file that is to be read."""
        return store.Entry(self.file_bytes, self.version, self.state)

    @property
    def name(self) -> str:
        """The name of its object and its records, without an ending."""
        return unit_name(self.index)


SCHEMA = pa.schema(
    {
        "index": pa.int64(),
        "file": pa.string(),
        "format": pa.string(),
        "compression": pa.string(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "tokens": pa.int64(),
        "size_bytes": pa.int64(),
        "file_bytes": pa.int64(),
        "version": pa.string(),
        "source": pa.int64(),
    }
)
_STATE = "state"
_LEFT_OUT = {_STATE: pa.scalar(""), "source": pa.scalar(0, pa.int64())}
_REPEATED = ("file", "format", "compression", "version", _STATE)


class Units(Sequence[Unit]):
    """A list of work units, in some 50 bytes each: a job may have millions.

    Args:
        table: One row a unit, with the fields of ``Unit`` as columns; ``state`` and ``source`` may
            be left out.
    """

    def __init__(self, table: pa.Table) -> None:
        """Values that repeat are held once."""
        for name, empty in _LEFT_OUT.items():
            if name not in table.schema.names:
                table = table.append_column(name, pa.repeat(empty, len(table)))
        for name in _REPEATED:
            at = table.schema.get_field_index(name)
            if not pa.types.is_dictionary(table.schema.field(at).type):
                table = table.set_column(at, name, table[name].dictionary_encode())
        self._table = table.unify_dictionaries().combine_chunks()

    def __len__(self) -> int:
        """How many units."""
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, at: int) -> Unit: ...
    @overload
    def __getitem__(self, at: slice) -> Self: ...
    def __getitem__(self, at: int | slice) -> Unit | Self:
        """One unit, or a list of some."""
        if isinstance(at, slice):
            return self.take(np.arange(len(self))[at])
        row = range(len(self))[at]
        return Unit(**{name: self._table[name][row].as_py() for name in (*SCHEMA.names, _STATE)})

    def __iter__(self) -> Iterator[Unit]:
        """Each unit in turn."""
        for batch in self._table.to_batches(max_chunksize=1024):
            yield from (Unit(**row) for row in batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        """Whether it has the same units in the same order."""
        return isinstance(other, Units) and encode_units(self) == encode_units(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, at: Any) -> Self:
        """The units at these places of the list: integers, or a mask of booleans."""
        at = np.asarray(at)
        return type(self)(self._table.take(np.flatnonzero(at) if at.dtype == bool else at))

    @property
    def index(self) -> Any:
        """The index of each: an array of int64."""
        return self._table["index"].to_numpy()

    @property
    def tokens(self) -> int:
        """Prompt and response tokens of all, about."""
        return int(pc.sum(self._table["tokens"], min_count=0).as_py())

    @property
    def size_bytes(self) -> int:
        """Bytes of all, as stored, about."""
        return int(pc.sum(self._table["size_bytes"], min_count=0).as_py())

    def seen_by(self, listed: "Units") -> Self:
        """The same units of files as another list's call has just seen them."""
        pairs = listed._table.group_by(["file", _STATE]).aggregate([])
        states = dict(zip(pairs["file"].to_pylist(), pairs[_STATE].to_pylist(), strict=True))
        file = self._table["file"].combine_chunks()
        of_file = [states.get(name, "") for name in file.dictionary.to_pylist()]
        column = pa.DictionaryArray.from_arrays(file.indices, pa.array(of_file, pa.string()))
        at = self._table.schema.get_field_index(_STATE)
        return type(self)(self._table.set_column(at, _STATE, column))

    def as_table(self) -> pa.Table:
        """One row a unit, as it is kept."""
        return self._table.select(SCHEMA.names).cast(SCHEMA)


def encode_units(units: Units) -> bytes:
    """``units.parquet``: the same units give the same bytes."""
    sink = io.BytesIO()
    pq.write_table(units.as_table(), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def decode_units(data: bytes) -> Units:
    """Read ``units.parquet``; what it has not, of a sealed run of schema 2 or before, is empty."""
    table = pq.read_table(
        pa.BufferReader(data), page_checksum_verification=True, read_dictionary=list(_REPEATED)
    )
    for name, empty in (("file_bytes", 0), ("version", "")):
        if name not in table.schema.names:
            values = pa.repeat(pa.scalar(empty, SCHEMA.field(name).type), len(table))
            table = table.append_column(name, values)
    return Units(table)
