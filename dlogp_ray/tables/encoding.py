"""Parquet objects of tables: how they are encoded, and what their footers say.

A unit's object says in its footer what it was made from and what is in it, so that the totals of a
run cost one footer read an object, and rows that something else has written again are told.
"""

import hashlib
import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

_TRAILER = struct.Struct("<I4s")
_PREFIX = "dlogp_ray."
_BODY_BYTES = f"{_PREFIX}body_bytes"


class Footer(BaseModel):
    """What an object says of itself.

    Attributes:
        unit: Whose it is.
        rows_in: Rows of the corpus (of weights: of the scores; of answers: to each intervention)
            that it was made from.
        tokens: Of the responses in its rows.
        status: Its rows by status.
        special_tokens: Rows of the corpus by what is special, as in ``tables.special_tokens``.
        summary: Of its rows, which adds up.
        content_hash: Of its rows.
        schema_version: Of its kind of table.
        origin: What its run was made from, as ``StoredRun.origin``; not said before scores and
            generations of schema 3, and weights of 2.
        body_bytes: What the object has before its footer. The first objects of schema 3 don't say.
    """

    model_config = ConfigDict(frozen=True)

    unit: int
    rows_in: int
    tokens: int
    status: dict[str, int]
    special_tokens: dict[str, int] = {}
    summary: dict[str, Any]
    content_hash: str
    schema_version: int
    origin: str | None = None
    body_bytes: int | None = None

    @property
    def says_bytes(self) -> bool:
        """Whether ``body_bytes`` is there; as null it is a copy's, of another object."""
        return "body_bytes" in self.model_fields_set


def check_lists(table: pa.Table) -> None:
    """Check that every list of a row but the prompt has the length of ``response_ids``, or is null.

    Raises:
        ValueError: A list is longer or shorter: the table must not be written.
    """
    expected = pa.compute.list_value_length(table["response_ids"])
    for field in table.schema:
        if pa.types.is_list(field.type) and field.name != "prompt_ids":
            lengths = pa.compute.list_value_length(table[field.name])
            differs = pa.compute.fill_null(pa.compute.not_equal(lengths, expected), False)
            if pa.compute.any(differs).as_py():
                row = differs.to_pylist().index(True)
                raise ValueError(
                    f"row {row}: {field.name} has {lengths[row]} values for "
                    f"{expected[row]} response tokens"
                )


def encode_object(table: pa.Table, footer: Footer) -> bytes:
    """A unit's object: page checksums, zstd, and its footer.

    Floats are BYTE_STREAM_SPLIT, token ids dictionary-encoded: 8.68 bytes a token for ids and two
    float columns, where zstd's defaults take 9.56.

    Args:
        table: Its rows.
        footer: What is said of them; ``body_bytes`` is what comes of it.
    """
    check_lists(table)
    metadata = {
        f"{_PREFIX}{name}": json.dumps(value) for name, value in footer.model_dump().items()
    }
    metadata[_BODY_BYTES] = "null"  # what a copy of the values says
    float_lists = [
        field.name
        for field in table.schema
        if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type)
    ]
    others = [name for name in _leaf_paths(table.schema) if name.split(".")[0] not in float_lists]
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        table.schema.with_metadata(metadata),
        compression="zstd",
        compression_level=3,
        use_dictionary=others,
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in float_lists},
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=max(1, len(table)))
        writer.add_key_value_metadata({_BODY_BYTES: json.dumps(sink.tell())})
    return sink.getvalue()


def encode_table(table: pa.Table) -> bytes:
    """A small Parquet object with page checksums."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _leaf_paths(schema: pa.Schema) -> list[str]:
    return [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in schema
    ]


def read_footer(end: bytes) -> tuple[Footer, str]:
    """What an object's footer says, and the SHA-256 of that footer.

    Args:
        end: The object, or enough of its end to hold the footer (``footer_bytes`` of them).

    Raises:
        ValueError: That is no end of a unit's object.
    """
    needed = footer_bytes(end)
    if len(end) < needed:
        raise ValueError(f"its footer has {needed} bytes, and there are {len(end)}")
    try:
        metadata = pq.read_metadata(pa.BufferReader(end)).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"its footer can't be read: {error}") from None
    return _footer(metadata), hashlib.sha256(end[-needed:]).hexdigest()


def _footer(metadata: Mapping[bytes, bytes]) -> Footer:
    values = {
        key.decode().removeprefix(_PREFIX): json.loads(value)
        for key, value in metadata.items()
        if key.startswith(_PREFIX.encode())
    }
    try:
        return Footer.model_validate(values)
    except ValidationError as error:
        wrong = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors()}))
        raise ValueError(f"its footer does not say {wrong}, as a unit's does") from None


def footer_bytes(end: bytes) -> int:
    """How long the footer is, with its length and the magic number after it.

    Raises:
        ValueError: That is no end of a Parquet file.
    """
    if len(end) < _TRAILER.size or not end.endswith(b"PAR1"):
        raise ValueError("it does not end as a Parquet file does")
    return _TRAILER.size + int(_TRAILER.unpack(end[-_TRAILER.size :])[0])
