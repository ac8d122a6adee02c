"""Reading parts of files: every row once with its offset, and bad rows alone are rejected."""

import gzip
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlogp_ray.corpus.reading import read_jsonl, read_parquet
from dlogp_ray.errors import RowRejected

# Pieces of files: rows, bad rows, blank lines, all kinds of line ends (or none), letters of two
# and four bytes.
lines = st.sampled_from(
    [b'{"a": 1}', '{"é": "🙂"}'.encode(), b"{broken", b"[1]", b"\xff\xfe", b"", b" \t", b"{}"]
)
contents = st.lists(
    st.tuples(lines, st.sampled_from([b"\n", b"\r\n", b"\n\n", b""])), max_size=20
).map(lambda pairs: b"".join(line + end for line, end in pairs))


def lines_at(data: bytes) -> dict[int, bytes]:
    """Byte offset -> line, of all lines that are not blank: found by splitting, not by reading."""
    found, offset = {}, 0
    for line in data.split(b"\n"):
        if line.strip():
            found[offset] = line
        offset += len(line) + 1
    return found


def readable(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), dict)
    except ValueError:
        return False


@settings(max_examples=200, deadline=None)
@given(contents, st.data())
def test_any_cut_gives_every_line_once_at_its_offset(data: bytes, draw: st.DataObject) -> None:
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.jsonl"
        path.write_bytes(data)
        rows = [
            (start, stop, offset, row)
            for start, stop in pairwise(sorted([0, *cuts, len(data)]))
            for offset, row in read_jsonl(str(path), start, stop, None)
        ]
    expected = lines_at(data)
    assert [offset for _, _, offset, _ in rows] == list(expected)
    for start, stop, offset, row in rows:
        assert start <= offset < stop
        if readable(expected[offset]):
            assert row == json.loads(expected[offset])
        else:
            assert isinstance(row, RowRejected)
            assert row.status == "malformed"


ROWS = [{"sample_id": str(i), "text": "é" * i} for i in range(50)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize("codec", ["gzip", "zstd", "bz2", "lz4"])
def test_a_compressed_file_gives_the_rows_and_offsets_of_the_plain_one(
    tmp_path: Path, codec: str
) -> None:
    path = tmp_path / "c"
    if codec == "gzip":
        path.write_bytes(gzip.compress(JSONL))
    else:
        with pa.CompressedOutputStream(str(path), codec) as file:
            file.write(JSONL)
    found = list(read_jsonl(str(path), 0, None, codec))
    assert found == list(zip(lines_at(JSONL), ROWS, strict=True))


def test_a_gzip_file_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(gzip.compress(JSONL) + gzip.compress(JSONL))  # as `cat a.gz b.gz` makes it
    assert [row for _, row in read_jsonl(str(path), 0, None, "gzip")] == ROWS + ROWS


def test_a_compressed_file_that_was_cut_off_raises(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(gzip.compress(JSONL)[:-20])
    with pytest.raises(OSError, match=r"(?i)truncated|eof|end of"):
        list(read_jsonl(str(path), 0, None, "gzip"))


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"a": "\xff"}', "utf-8"),
        (b"[" * 100_000 + b"]" * 100_000, "recursion"),
        (b'{"a": 1', "not a line of JSON"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "not a line of JSON"),
        (b"[1, 2]", "expected a JSON object, got list"),
        (b"null", "expected a JSON object, got NoneType"),
    ],
    ids=["utf8", "deep", "cut", "digits", "list", "null"],
)
def test_a_line_that_cannot_be_parsed_is_rejected_alone(
    tmp_path: Path, line: bytes, cause: str
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    (_, before), (offset, bad), (_, after) = read_jsonl(str(path), 0, None, None)
    assert (before, offset, after) == ({"a": 1}, 9, {"a": 2})  # the first line has 9 bytes
    assert isinstance(bad, RowRejected)
    assert bad.status == "malformed"
    assert cause in bad.error


TABLE = pa.table(
    {
        "sample_id": [str(i) for i in range(100)],
        "response_ids": [list(range(i % 7)) for i in range(100)],
        "unused": list(range(100)),
    }
)
COLUMNS = {"sample_id", "response_ids", "absent"}


def test_any_range_of_parquet_rows_is_a_slice_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "c.parquet")
    pq.write_table(TABLE, path, row_group_size=17)  # 5 groups of 17 rows and one of 15
    # Smaller than a row group, so that ranges begin and end inside batches, too.
    monkeypatch.setattr("dlogp_ray.corpus.reading._PARQUET_BATCH_ROWS", 5)
    plain = pq.read_table(path, columns=["sample_id", "response_ids"]).to_pylist()
    for start, stop in [(0, 100), (0, 1), (16, 18), (17, 34), (40, 90), (3, 4), (99, 100), (5, 5)]:
        expected = list(enumerate(plain))[start:stop]
        assert list(read_parquet(path, start, stop, COLUMNS)) == expected, (start, stop)


def test_parquet_rows_without_a_known_column_are_still_rows(tmp_path: Path) -> None:
    path = str(tmp_path / "c.parquet")
    pq.write_table(TABLE, path)
    assert list(read_parquet(path, 98, 100, {"absent"})) == [(98, {}), (99, {})]


def test_a_corrupted_parquet_page_raises(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(TABLE, path, row_group_size=50, write_page_checksum=True, use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 2] ^= 0xFF
    path.write_bytes(bytes(data))
    assert len(list(read_parquet(str(path), 0, 50, COLUMNS))) == 50  # the other row group is whole
    rows: Any = read_parquet(str(path), 50, 100, COLUMNS)
    with pytest.raises(OSError, match="CRC"):
        list(rows)
