"""The scores table: columns, types, and how an object of it is encoded.

One row a sample and compared policy. All lists of a row have one length, the response's; a row
that could not be scored has empty lists, a list that the job did not compute (one policy alone)
is null.
"""

import hashlib
import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray.tables.content_hash import content_hash

SCHEMA_VERSION = 3
"""2: special tokens of text rows are not doubled, and are counted in footers and manifest. 3: a
footer says what its run was made from; the version of a file on a disk is its time in ns."""
BODY_BYTES = "body_bytes"
"""Of a footer: what the object has before it. The first objects of schema 3 don't say it."""
_TRAILER = struct.Struct("<I4s")

BASE_STATISTICS = ("logp_base", "entropy_base", "max_logp_base", "rank_base", "top1_id_base")
RL_STATISTICS = ("logp_rl", "entropy_rl", "max_logp_rl", "rank_rl", "top1_id_rl")
PAIR_STATISTICS = (
    "delta_logp",
    "kl_rl_base",
    "kl_base_rl",
    "js",
    "logp_base_of_rl_top1",
    "rank_base_of_rl_top1",
    "top1_agree",
)
STATISTICS = BASE_STATISTICS + RL_STATISTICS + PAIR_STATISTICS


def _statistic_type(name: str) -> pa.DataType:
    if name == "top1_agree":
        return pa.list_(pa.bool_())
    integer = name.startswith(("rank_", "top1_id_"))
    return pa.list_(pa.int32() if integer else pa.float32())


IDENTITY_FIELDS = (
    pa.field("sample_id", pa.string()),
    pa.field("group_id", pa.string()),
    pa.field("generator", pa.string()),
    pa.field("policy", pa.string(), nullable=False),
    pa.field("step", pa.int32()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("source_file", pa.string(), nullable=False),
    pa.field("source_offset", pa.int64(), nullable=False),
    pa.field("token_hash", pa.string()),
    pa.field("prompt_hash", pa.string()),
    pa.field("prompt_len", pa.int32()),
    pa.field("temperature", pa.float32()),
    pa.field("top_p", pa.float32()),
    pa.field("reward", pa.float32()),
    pa.field("from_text", pa.bool_(), nullable=False),
    pa.field("response_ids", pa.list_(pa.int32())),
    pa.field("response_mask", pa.list_(pa.bool_())),
)
STATISTIC_FIELDS = tuple(pa.field(name, _statistic_type(name)) for name in STATISTICS)
RESERVED = frozenset(field.name for field in (*IDENTITY_FIELDS, *STATISTIC_FIELDS))

CARRY_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
}


def scores_schema(carry: Mapping[str, str]) -> pa.Schema:
    """The scores table's schema with the carried metadata columns at the end."""
    carried = [pa.field(name, CARRY_TYPES[kind]) for name, kind in carry.items()]
    return pa.schema([*IDENTITY_FIELDS, *STATISTIC_FIELDS, *carried])


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


def encode(table: pa.Table, footer: Mapping[str, Any], origin: str) -> bytes:
    """One Parquet object: page checksums, zstd, and the footer's JSON values with a content hash.

    Args:
        table: Its rows.
        footer: What is said of them.
        origin: What they were made from: ``Run.origin`` of their run.

    Floats are BYTE_STREAM_SPLIT, token ids dictionary-encoded: 8.68 bytes a token for ids and two
    float columns, where zstd's defaults take 9.56.
    """
    check_lists(table)
    metadata = {f"dlogp_ray.{key}": json.dumps(value) for key, value in footer.items()}
    metadata["dlogp_ray.origin"] = json.dumps(origin)
    metadata["dlogp_ray.content_hash"] = json.dumps(content_hash(table))
    metadata["dlogp_ray.schema_version"] = json.dumps(SCHEMA_VERSION)
    metadata[f"dlogp_ray.{BODY_BYTES}"] = "null"  # what a copy of the values says
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
        writer.add_key_value_metadata({f"dlogp_ray.{BODY_BYTES}": json.dumps(sink.tell())})
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


def footer(end: bytes) -> tuple[dict[str, Any], str]:
    """The values that ``encode`` put into an object's footer, and the SHA-256 of that footer.

    Args:
        end: The object, or enough of its end to hold the footer (``footer_bytes`` of them).

    Raises:
        ValueError: That is no end of a Parquet file.
    """
    needed = footer_bytes(end)
    if len(end) < needed:
        raise ValueError(f"its footer has {needed} bytes, and there are {len(end)}")
    try:
        metadata = pq.read_metadata(pa.BufferReader(end)).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"its footer can't be read: {error}") from None
    values = {
        key.decode().removeprefix("dlogp_ray."): json.loads(value)
        for key, value in metadata.items()
        if key.startswith(b"dlogp_ray.")
    }
    return values, hashlib.sha256(end[-needed:]).hexdigest()


def footer_bytes(end: bytes) -> int:
    """How long the footer is, with its length and the magic number after it.

    Raises:
        ValueError: That is no end of a Parquet file.
    """
    if len(end) < _TRAILER.size or not end.endswith(b"PAR1"):
        raise ValueError("it does not end as a Parquet file does")
    return _TRAILER.size + int(_TRAILER.unpack(end[-_TRAILER.size :])[0])
