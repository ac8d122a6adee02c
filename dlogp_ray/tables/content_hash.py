"""A hash of a table's content: the same for the same rows, however the file was encoded."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def content_hash(table: pa.Table) -> str:
    """SHA-256 (hex) over column names, types and values, in order.

    Chunking, slicing, encoding, compression and metadata don't change it; row order does.
    """
    digest = hashlib.sha256()
    for field in table.schema:
        digest.update(f"{field.name}:{_type_name(field.type)}:{len(table)}\n".encode())
        column = table.column(field.name).combine_chunks()
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        for chunk in chunks:
            _update(digest, chunk)
    return digest.hexdigest()


def _type_name(kind: pa.DataType) -> str:
    # Parquet and Arrow name a list's only child differently ("element", "item").
    return f"list<{_type_name(kind.value_type)}>" if pa.types.is_list(kind) else str(kind)


def _update(digest: Any, array: pa.Array) -> None:
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    digest.update(np.packbits(valid).tobytes())
    if pa.types.is_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        digest.update(lengths.to_numpy(zero_copy_only=False).tobytes())
        _update(digest, array.flatten())
    elif pa.types.is_string(array.type):
        values = pc.fill_null(array, "")
        digest.update(pc.binary_length(values).to_numpy(zero_copy_only=False).tobytes())
        digest.update("".join(values.to_pylist()).encode())
    else:
        values = pc.fill_null(array, pa.scalar(0, pa.int8()).cast(array.type))
        digest.update(values.to_numpy(zero_copy_only=False).tobytes())
