"""The scores table's columns, and an object's way to bytes and back."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_records import footer_of

from dlogp_ray.tables.content_hash import content_hash
from dlogp_ray.tables.encoding import check_lists, encode_object, footer_bytes, read_footer
from dlogp_ray.tables.scores import RESERVED, scores_schema

# The design's list ("What comes out"), by type; from_text and reward came with the corpus format.
DESIGN = {
    "string": "sample_id group_id generator policy status error source_file token_hash prompt_hash",
    "int64": "source_offset",
    "int32": "prompt_len step",
    "float": "temperature top_p reward",
    "bool": "from_text",
    "list<int32>": ("response_ids rank_base rank_rl top1_id_base top1_id_rl rank_base_of_rl_top1"),
    "list<bool>": "response_mask top1_agree",
    "list<float>": (
        "logp_base logp_rl delta_logp entropy_base entropy_rl kl_rl_base kl_base_rl js "
        "max_logp_base max_logp_rl logp_base_of_rl_top1"
    ),
}


def type_name(kind: pa.DataType) -> str:
    return f"list<{kind.value_type}>" if pa.types.is_list(kind) else str(kind)


def make_scores(*changes: dict[str, Any]) -> pa.Table:
    """One pair's rows of three tokens, every list filled."""
    schema = scores_schema({"note": "string"})
    lists = {
        field.name: [index % 2 == 0 for index in range(3)]
        if pa.types.is_boolean(field.type.value_type)
        else [1, 2, 3]
        for field in schema
        if pa.types.is_list(field.type)
    }
    row = lists | {
        "policy": "rl",
        "status": "ok",
        "source_file": "corpus.jsonl",
        "source_offset": 0,
        "from_text": False,
        "note": "äöü",
    }
    return pa.Table.from_pylist([row | change for change in changes], schema=schema)


def encode(table: pa.Table, **said: Any) -> bytes:
    return encode_object(table, footer_of(table, 7, "its run", **said))


def read(data: bytes, **options: Any) -> pa.Table:
    return pq.read_table(pa.BufferReader(data), **options)


def test_the_columns_are_the_design_s() -> None:
    wanted = {name: kind for kind, names in DESIGN.items() for name in names.split()}
    schema = scores_schema({})
    assert {field.name: type_name(field.type) for field in schema} == wanted
    assert wanted.keys() <= RESERVED


def test_carried_columns_come_last_with_their_types() -> None:
    carry = {"a": "string", "b": "int64", "c": "float64", "d": "bool"}
    schema = scores_schema(carry)
    assert schema.names[-4:] == ["a", "b", "c", "d"]
    assert [str(schema.field(name).type) for name in "abcd"] == [
        "string",
        "int64",
        "double",
        "bool",
    ]


@pytest.mark.parametrize("changes", [[], [{}], [{}, {"logp_base": None, "note": None}]])
def test_a_table_comes_back_equal(changes: list[dict[str, Any]]) -> None:
    table = make_scores(*changes)
    back = read(encode(table), page_checksum_verification=True)
    assert back.schema.equals(table.schema)
    assert back.equals(table)


def test_float_lists_are_byte_stream_split_and_others_dictionary_encoded() -> None:
    metadata = pq.ParquetFile(pa.BufferReader(encode(make_scores({})))).metadata
    group = metadata.row_group(0)
    encodings = {
        column.path_in_schema.split(".")[0]: column.encodings
        for column in map(group.column, range(group.num_columns))
    }
    for name in DESIGN["list<float>"].split():
        assert "BYTE_STREAM_SPLIT" in encodings[name], name
        assert "RLE_DICTIONARY" not in encodings[name], name
    for name in DESIGN["list<int32>"].split():
        assert "RLE_DICTIONARY" in encodings[name], name


def test_a_flipped_bit_is_found_by_the_page_checksum() -> None:
    data = bytearray(encode(make_scores({})))
    group = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(0)
    (column,) = (
        c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith("js.")
    )
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    with pytest.raises(OSError, match="CRC"):
        read(bytes(data), page_checksum_verification=True)


def test_the_same_rows_give_the_same_bytes() -> None:
    table = make_scores({}, {})
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert encode(table) == encode(table)
    assert read_footer(encode(chunked))[0].content_hash == content_hash(table)


def test_rows_that_pyarrow_writes_again_do_not_say_what_bytes_they_have() -> None:
    """It keeps a table's metadata: all other values of a footer are copied with it."""
    sink = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(encode(make_scores({})))), sink)
    back, _ = read_footer(sink.getvalue())
    assert (back.unit, back.origin, back.body_bytes) == (7, "its run", None)


def test_the_footer_comes_back() -> None:
    table = make_scores({})
    footer = footer_of(table, 7, "its run", summary={"x": [0.1, None, "ä"]})
    data = encode_object(table, footer)
    back, _ = read_footer(data)
    body_bytes = len(data) - footer_bytes(data)
    assert back == footer.model_copy(update={"body_bytes": body_bytes})


def test_a_footer_that_does_not_say_what_a_unit_s_says_is_named() -> None:
    sink = io.BytesIO()
    table = make_scores({}).replace_schema_metadata({"dlogp_ray.unit": "7"})
    pq.write_table(table, sink)
    with pytest.raises(ValueError, match=r"does not say content_hash, rows_in, .*tokens"):
        read_footer(sink.getvalue())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"js": [1.0, 2.0]}, "row 1: js has 2 values for 3 response tokens"),
        ({"response_mask": []}, "row 1: response_mask has 0 values for 3"),
        ({"rank_rl": [1, 2, 3, 4]}, "row 1: rank_rl has 4 values for 3"),
    ],
)
def test_lists_of_another_length_are_refused(change: dict[str, Any], named: str) -> None:
    table = make_scores({}, change)
    with pytest.raises(ValueError, match=named):
        check_lists(table)
    with pytest.raises(ValueError, match=named):
        encode(table)


def test_a_null_list_has_no_length() -> None:
    check_lists(make_scores({}, {"js": None}))
