"""Reading parts of files: every row once with its offset, and bad rows alone are rejected."""

import gzip
import json
import os
import tempfile
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlogp_ray import store
from dlogp_ray.corpus.cutting import cut_units
from dlogp_ray.corpus.files import list_corpus
from dlogp_ray.corpus.reading import read_jsonl, read_parquet
from dlogp_ray.errors import InputChanged, Refused, RowRejected


def jsonl(path: Path, start: int = 0, stop: int | None = None, codec: str | None = None) -> Any:
    return read_jsonl(str(path), store.entry(str(path)), start, stop, codec)


def parquet(path: Path | str, start: int, stop: int, columns: set[str]) -> Any:
    return read_parquet(str(path), store.entry(str(path)), start, stop, columns)


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


@settings(max_examples=200)
@given(contents, st.data())
def test_any_cut_gives_every_line_once_at_its_offset(data: bytes, draw: st.DataObject) -> None:
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.jsonl"
        path.write_bytes(data)
        rows = [
            (start, stop, offset, row)
            for start, stop in pairwise(sorted([0, *cuts, len(data)]))
            for offset, row in jsonl(path, start, stop, None)
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
    found = list(jsonl(path, 0, None, codec))
    assert found == list(zip(lines_at(JSONL), ROWS, strict=True))


def test_a_gzip_file_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(gzip.compress(JSONL) + gzip.compress(JSONL))  # as `cat a.gz b.gz` makes it
    assert [row for _, row in jsonl(path, 0, None, "gzip")] == ROWS + ROWS


def test_a_compressed_file_that_was_cut_off_raises(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(gzip.compress(JSONL)[:-20])
    with pytest.raises(OSError, match=r"(?i)truncated|eof|end of"):
        list(jsonl(path, 0, None, "gzip"))


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
    (_, before), (offset, bad), (_, after) = read_jsonl(
        str(path), store.entry(str(path)), 0, None, None
    )
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
        assert list(parquet(path, start, stop, COLUMNS)) == expected, (
            start,
            stop,
        )


def test_parquet_rows_without_a_known_column_are_still_rows(tmp_path: Path) -> None:
    path = str(tmp_path / "c.parquet")
    pq.write_table(TABLE, path)
    assert list(parquet(path, 98, 100, {"absent"})) == [(98, {}), (99, {})]


def test_a_corrupted_parquet_page_raises(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(TABLE, path, row_group_size=50, write_page_checksum=True, use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 2] ^= 0xFF
    path.write_bytes(bytes(data))
    assert len(list(parquet(path, 0, 50, COLUMNS))) == 50  # the other row group is whole
    rows: Any = parquet(path, 50, 100, COLUMNS)
    with pytest.raises(OSError, match="CRC"):
        list(rows)


def test_a_line_that_is_too_long_is_rejected_before_it_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        file.truncate(300 * 2**20)  # of zeros, which take no room
        file.seek(0, os.SEEK_END)
        file.write(b'"}\n{"a": 2}\n')
    tracemalloc.start()
    rows = list(read_jsonl(str(path), store.entry(str(path)), 0, None, None, max_row_bytes=1_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20
    (_, first), (offset, long), (after, last) = rows
    assert (first, last) == ({"a": 1}, {"a": 2})
    assert (offset, after) == (9, 300 * 2**20 + 3)
    assert isinstance(long, RowRejected)
    assert long.status == "too_large"
    assert "1,000 bytes (max_row_bytes)" in long.error
    # Each range of bytes still has the lines that begin in it.
    half = 150 * 2**20
    beginnings = [offset for offset, _ in jsonl(path, half, None)]
    assert beginnings == [after]


def test_a_line_as_long_as_it_may_be_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"a": "1234"}\n' + b'{"a": "12345"}\n' + b'{"a": "1234"}')
    rows = list(read_jsonl(str(path), store.entry(str(path)), 0, None, None, max_row_bytes=13))
    assert [isinstance(row, RowRejected) for _, row in rows] == [False, True, False]


def test_a_row_group_that_unfolds_to_too_much_is_refused_by_its_metadata(tmp_path: Path) -> None:
    path = str(tmp_path / "c.parquet")
    n = 50_000_000
    zeros = pa.ListArray.from_arrays(pa.array([0, n], pa.int32()), pa.array(np.zeros(n, np.int32)))
    pq.write_table(pa.table({"prompt_ids": zeros}), path, compression="zstd")
    assert os.path.getsize(path) < 20_000
    rows = read_parquet(path, store.entry(path), max_row_bytes=64 * 2**20)
    with pytest.raises(Refused, match=r"row group 0 has 1 row and unfolds to 200,.* bytes"):
        list(rows)
    with pytest.raises(Refused, match="max_row_bytes"):
        cut_units(list_corpus([path]), 100)


def test_a_text_in_every_row_is_held_once(tmp_path: Path) -> None:
    path = str(tmp_path / "c.parquet")
    text = "x" * 2**20
    pq.write_table(
        pa.table({"sample_id": [str(i) for i in range(300)], "response": [text] * 300}), path
    )
    assert os.path.getsize(path) < 2**20
    seen, before = 0, pa.total_allocated_bytes()
    tracemalloc.start()
    for _, row in read_parquet(path, store.entry(path)):
        assert row["response"] == text  # type: ignore[index]
        seen += 1
        assert pa.total_allocated_bytes() - before < 50 * 2**20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == 300
    assert peak < 50 * 2**20


def test_a_parquet_row_that_is_too_large_is_rejected_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "c.parquet")
    texts = ["a" * 10, "b" * 5_000, "c" * 10, *["d"] * 7]
    nested = [[{"role": "user", "content": text}] for text in texts]
    for column in (texts, nested, [[1] * len(text) for text in texts]):
        pq.write_table(pa.table({"value": column}), path)
        rows = list(read_parquet(path, store.entry(path), max_row_bytes=4_000))
        (_, first), (_, large), *others = rows
        assert first == {"value": column[0]}
        assert others == [(at, {"value": column[at]}) for at in range(2, 10)]
        assert isinstance(large, RowRejected)
        assert large.status == "too_large"


@pytest.mark.parametrize("reader", ["jsonl", "parquet"])
def test_a_file_that_is_another_one_is_named(reader: str, tmp_path: Path) -> None:
    path = tmp_path / f"c.{reader}"
    if reader == "jsonl":
        path.write_bytes(JSONL)
    else:
        pq.write_table(TABLE, path)
    version = store.entry(str(path))

    def read() -> Any:
        if reader == "jsonl":
            return read_jsonl(str(path), version, 0, None, None)
        return read_parquet(str(path), version)

    assert len(list(read())) in (50, 100)
    halfway = read()
    next(halfway)
    os.utime(path)
    with pytest.raises(InputChanged, match=rf"corpus_changed: .*c\.{reader} has"):
        list(halfway)
    with pytest.raises(InputChanged, match="corpus_changed"):
        next(read())
    path.unlink()
    with pytest.raises(InputChanged, match=rf"c\.{reader} is gone"):
        next(read())


def test_an_error_of_a_file_that_was_changed_is_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(TABLE, path, row_group_size=10)
    rows = read_parquet(str(path), store.entry(str(path)))
    next(rows)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputChanged, match="corpus_changed"):
        list(rows)


def test_a_row_group_without_rows_is_passed_over(tmp_path: Path) -> None:
    path = str(tmp_path / "c.parquet")
    with pq.ParquetWriter(path, TABLE.schema) as writer:
        for part in (TABLE.slice(0, 10), TABLE.slice(0, 0), TABLE.slice(10, 5)):
            writer.write_table(part)
    assert pq.ParquetFile(path).metadata.row_group(1).num_rows == 0
    assert [offset for offset, _ in parquet(path, 0, 15, COLUMNS)] == list(range(15))


@pytest.mark.parametrize("row", ['{"a": 1, "b": 2, "a": 3}', '{"m": {"a": 1, "a": 1}}'])
def test_a_name_that_stands_twice_in_a_row_rejects_it(row: str, tmp_path: Path) -> None:
    """Of which the last would count, without a word."""
    path = tmp_path / "c.jsonl"
    path.write_text(f'{row}\n{{"a": 1}}\n')
    (_, first), (_, second) = jsonl(path)
    assert isinstance(first, RowRejected)
    assert "'a' stands there twice" in first.error
    assert second == {"a": 1}


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"[\n", "a list begins; `jq -c '.[]'`"), (b"PAR1\x15\x88", "a Parquet file")],
)
def test_what_is_no_json_lines_at_all_is_told(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(data)
    (_, row), *_ = jsonl(path)
    assert isinstance(row, RowRejected)
    assert said in row.error
