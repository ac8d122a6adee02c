"""A row is told by its line, where that can be had, and by its byte."""

from pathlib import Path

import pytest

from dlogp_ray.tables import places
from dlogp_ray.tables.places import place

LINES = [b'{"a": 1}\n', "é\n".encode(), b"\n", b"last"]


@pytest.mark.parametrize(("line", "byte"), [(1, 0), (2, 9), (3, 12), (4, 13)])
def test_a_line_is_counted_from_one(tmp_path: Path, line: int, byte: int) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"".join(LINES))
    assert place(str(path), byte) == f"{path}, line {line} (byte {byte})"


def test_a_row_of_parquet_is_counted_from_one() -> None:
    assert place("s3://b/c.parquet", 1_233) == "s3://b/c.parquet, row 1,234"


@pytest.mark.parametrize("why", ["gone", "another", "shorter", "compressed", "far"])
def test_where_no_line_can_be_told_the_byte_is(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("c.jsonl.gz" if why == "compressed" else "c.jsonl")
    if why != "gone":
        path.write_bytes(b"x" * 100 if why == "another" else b"".join(LINES))
    if why == "shorter":
        path.write_bytes(LINES[0])
    if why == "far":
        monkeypatch.setattr(places, "_READ_BYTES", 5)
    assert place(str(path), 12) == f"{path}, byte 12"
