"""Cutting work units: everything once, the same every time, in pieces of about the asked size."""

import gzip
import json
import os
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_rows, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from dlogp_ray import store
from dlogp_ray.config import CorpusEntry
from dlogp_ray.corpus.cutting import cut_units
from dlogp_ray.corpus.files import CorpusFile, list_corpus
from dlogp_ray.corpus.mapping import RowMap
from dlogp_ray.corpus.units import SCHEMA, Unit, Units, decode_units, encode_units
from dlogp_ray.errors import Refused


def cut(path: Path, unit_tokens: int, **columns: str) -> Units:
    row_map = RowMap(CorpusEntry(path=str(path), columns=columns))
    return cut_units(list_corpus([str(path)]), unit_tokens, (row_map,))


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def tokens_of(rows: list[dict[str, Any]]) -> int:
    return sum(len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows)


def test_every_byte_and_row_is_in_exactly_one_unit(tmp_path: Path) -> None:
    rows = make_rows(300)
    path = write_jsonl(tmp_path / "c/a.jsonl", rows[:200])
    write_parquet(tmp_path / "c/b.parquet", rows[200:], row_group_size=30)
    units = cut(tmp_path / "c", 500)
    assert [unit.index for unit in units] == list(range(len(units)))
    for name, length in (("a.jsonl", path.stat().st_size), ("b.parquet", 100)):
        parts = [unit for unit in units if unit.file.endswith(name)]
        assert len(parts) > 2
        assert (parts[0].start, parts[-1].stop) == (0, length)
        assert all(before.stop == after.start for before, after in pairwise(parts))
        assert all(part.start < part.stop for part in parts)


def test_the_same_corpus_is_cut_the_same(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c/a.jsonl", make_rows(100))
    write_parquet(tmp_path / "c/b.parquet", make_rows(100, seed=1))
    assert cut(tmp_path / "c", 300) == cut(tmp_path / "c", 300)


def test_parquet_tokens_are_counted_and_equal_parts_are_cut(tmp_path: Path) -> None:
    # 40 rows of 3 + 7 = 10 tokens are 400. Units of at most 150 tokens: ceil(400 / 150) = 3 parts,
    # whose bounds are 40 * (0, 1, 2, 3) / 3 rounded down; 13 rows have 130 tokens and 14 have 140.
    rows = [
        {"sample_id": str(i), "prompt_ids": [1] * 3, "response_ids": [2] * 7} for i in range(40)
    ]
    path = write_parquet(tmp_path / "c.parquet", rows, row_group_size=40)  # one group: it is split
    units = cut(path, 150)
    assert [(unit.start, unit.stop) for unit in units] == [(0, 13), (13, 26), (26, 40)]
    assert [unit.tokens for unit in units] == [130, 130, 140]
    assert [unit.tokens for unit in cut(path, 200)] == [200, 200]  # as many as fit, not fewer
    assert abs(sum(unit.size_bytes for unit in units) - path.stat().st_size) <= 3  # rounding


def test_small_row_groups_are_joined(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", make_rows(50), row_group_size=1)
    (unit,) = cut(path, 1_000_000)
    assert (unit.start, unit.stop) == (0, 50)


def test_parquet_tokens_are_found_under_the_corpus_s_own_names(tmp_path: Path) -> None:
    rows = make_rows(50)
    renamed = [
        {
            "id": row["sample_id"],
            "question_ids": row["prompt_ids"],
            "completion_ids": row["response_ids"],
            "response_ids_of_another": [0] * 1000,
            "meta": {"response_ids": [0] * 1000},  # a field of a struct is not the column
        }
        for row in rows
    ]
    path = write_parquet(tmp_path / "c.parquet", renamed)
    (unit,) = cut(path, 10**6, prompt_ids="question_ids", response_ids="completion_ids")
    assert unit.tokens == tokens_of(rows)


def test_jsonl_tokens_are_near_what_is_there(tmp_path: Path) -> None:
    # Rows alike over the file: the sample's tokens a byte hold for all of it. Twice the sampled
    # 256 KiB, so that the estimate extrapolates. 10 % is what lengths that differ may make.
    rows = make_rows(4_000)
    path = write_jsonl(tmp_path / "c.jsonl", rows)
    assert path.stat().st_size > 2 * 256 * 1024
    units = cut(path, 5_000)
    assert sum(unit.tokens for unit in units) == pytest.approx(tokens_of(rows), rel=0.1)
    # n = ceil(T / 5,000) equal parts have more than 5,000 (n - 1) / n tokens; n is above 10 here.
    assert len(units) > 10
    assert all(4_500 <= unit.tokens <= 5_001 for unit in units)


def test_text_counts_four_bytes_a_token(tmp_path: Path) -> None:
    rows = [{"sample_id": str(i), "prompt": "x" * 400, "response": "y" * 800} for i in range(100)]
    jsonl = write_jsonl(tmp_path / "c.jsonl", rows)
    assert sum(u.tokens for u in cut(jsonl, 10**9)) == pytest.approx(100 * 1200 / 4, rel=0.02)
    # 4 bytes of length a value and the page headers come on top; 3 % here.
    parquet = write_parquet(tmp_path / "c.parquet", rows, use_dictionary=False, compression="none")
    assert sum(u.tokens for u in cut(parquet, 10**9)) == pytest.approx(100 * 1200 / 4, rel=0.05)


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
def test_ids_beside_their_text_count_once_and_text_beside_other_ids_counts(
    tmp_path: Path, name: str
) -> None:
    """Rollouts often carry both; what is scored is the ids."""
    plain = partial(write_parquet, compression="none", use_dictionary=False)
    write = write_jsonl if name.endswith("jsonl") else plain
    row = {"sample_id": "s", "prompt_ids": [2] * 100, "response_ids": [3] * 200}
    both = [row | {"prompt": "x" * 4_000, "response": "y" * 8_000}] * 100
    path = write(tmp_path / name, both)
    assert sum(u.tokens for u in cut(path, 10**9)) == pytest.approx(100 * 300, rel=0.02)
    mixed = [{"sample_id": "s", "prompt": "x" * 4_000, "response_ids": [3] * 200}] * 100
    path = write(tmp_path / f"mixed-{name}", mixed)
    assert sum(u.tokens for u in cut(path, 10**9)) == pytest.approx(100 * 1_200, rel=0.02)


def test_a_compressed_file_is_one_unit(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in make_rows(500)).encode()
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(text))
    (unit,) = cut(path, 10)
    size = path.stat().st_size
    assert (unit.start, unit.stop, unit.compression, unit.size_bytes) == (0, size, "gzip", size)


def test_empty_files_have_no_unit_and_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/a.jsonl").touch()
    pq.write_table(pa.table({"sample_id": pa.array([], pa.string())}), tmp_path / "c/b.parquet")
    with pytest.raises(Refused, match="there is no row in "):
        cut(tmp_path / "c", 100)
    write_jsonl(tmp_path / "c/z.jsonl", make_rows(1))
    assert [Path(unit.file).name for unit in cut(tmp_path / "c", 100)] == ["z.jsonl"]


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl.gz"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"neither of the two" * 10)
    with pytest.raises(Refused, match=name):
        cut(tmp_path / name, 100)


def test_bad_rows_do_not_stop_the_estimate(tmp_path: Path) -> None:
    # The deepest nesting that json.loads takes can be more than what walks over it afterwards.
    deep = ['{"prompt_ids": ' + "[" * n + "]" * n + "}" for n in range(800, 1_000, 5)]
    path = write_jsonl(tmp_path / "c.jsonl", ["not json", "[1]", *deep, *make_rows(3)])
    assert sum(unit.tokens for unit in cut(path, 10**9)) >= 1


units = st.builds(
    Unit,
    index=st.integers(0, 10**8),
    file=st.text(st.characters(exclude_categories=["Cs"])),
    format=st.sampled_from(["jsonl", "parquet"]),
    compression=st.none() | st.just("gzip"),
    start=st.integers(0, 2**62),
    stop=st.integers(0, 2**62),
    tokens=st.integers(0, 2**62),
    size_bytes=st.integers(0, 2**62),
    file_bytes=st.integers(0, 2**62),
    version=st.text(st.characters(exclude_categories=["Cs"])),
)


@given(st.lists(units, max_size=5))
def test_units_survive_their_file_which_has_the_same_bytes_twice(units: list[Unit]) -> None:
    listed = Units(pa.Table.from_pylist([asdict(unit) for unit in units], schema=SCHEMA))
    assert list(listed) == units
    data = encode_units(listed)
    assert list(decode_units(data)) == units
    assert encode_units(decode_units(data)) == data


def test_units_are_taken_by_place_and_by_mask(tmp_path: Path) -> None:
    units = cut(write_jsonl(tmp_path / "c.jsonl", make_rows(100)), 100)
    whole = list(units)
    assert len(whole) > 10
    assert list(units[2:9:3]) == whole[2:9:3]
    assert (units[0], units[-1]) == (whole[0], whole[-1])
    mask = [unit.index % 3 == 1 for unit in whole]
    assert list(units.take(mask)) == whole[1::3]
    assert units.take(mask).tokens == sum(unit.tokens for unit in whole[1::3])
    with pytest.raises(IndexError):
        units[len(units)]


def test_bounds_of_a_file_of_many_parts_do_not_overflow(tmp_path: Path) -> None:
    # 10 TB in 4 million parts: bound k is floor(10^13 k / 4,000,000) = 2,500,000 k, and the
    # product 10^13 * 4 * 10^6 is more than 2^63.
    rows = [{"prompt_ids": [1, 2], "response_ids": [3]}] * 10_000  # more than is read of it
    path = write_jsonl(tmp_path / "c.jsonl", rows)
    os.truncate(path, 10**13)  # takes no room
    file = CorpusFile(str(path), "jsonl", None, *store.entry(str(path)))
    (whole,) = cut_units([file], 2**62)
    units = cut_units([file], whole.tokens // 4_000_000)
    count = len(units)
    assert 4_000_000 <= count < 4_001_000
    places = (0, count // 2, count - 1)
    assert [units[at].stop for at in places] == [10**13 * (at + 1) // count for at in places]
    assert [units[at].index for at in places] == list(places)


def test_names_sort_as_units_do() -> None:
    indices = (0, 9, 10, 99_999_999)
    names = [Unit(index, "f", "jsonl", None, 0, 1, 1, 1, 1, "1").name for index in indices]
    assert names[1] == "part-00000009"
    assert names == sorted(names)
