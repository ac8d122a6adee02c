"""Listing the corpus: which files count, in which order, and what is refused."""

from pathlib import Path

import fsspec
import pytest

from dlogp_ray.corpus.files import list_corpus
from dlogp_ray.errors import Refused


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four corpus files, nested, among others that are none."""
    for name in (
        "b.jsonl",
        "a.parquet",
        "deep/er/c.ndjson",
        "deep/d.jsonl.gz",
        "deep/readme.md",
        "deep/e.parquet.gz",
        "_SUCCESS",
        "_f.jsonl",
        ".g.jsonl",
        "_temporary/0/h.parquet",
        ".ipynb_checkpoints/i.jsonl",
    ):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    return tmp_path / "corpus"


def names(patterns: list[str], root: Path) -> list[str]:
    return [str(Path(file.uri).relative_to(root)) for file in list_corpus(patterns)]


def test_a_folder_stands_for_every_corpus_file_below_it_sorted(corpus: Path) -> None:
    # By address: "a" < "b" < "deep/d" < "deep/er"; hidden files and folders, other endings, and a
    # compressed Parquet file (which nothing can read in parts) are left alone.
    expected = ["a.parquet", "b.jsonl", "deep/d.jsonl.gz", "deep/er/c.ndjson"]
    assert names([str(corpus)], corpus) == expected
    assert names([f"{corpus}/"], corpus) == expected


def test_a_folder_may_itself_be_hidden(corpus: Path) -> None:
    corpus.rename(corpus.parent / ".cache")
    assert len(list_corpus([str(corpus.parent / ".cache")])) == 4


def test_what_is_known_of_a_file(corpus: Path) -> None:
    files = {Path(file.uri).name: file for file in list_corpus([str(corpus)])}
    found = {name: (f.format, f.compression, f.size_bytes) for name, f in files.items()}
    # The fixture writes as many bytes as the name below corpus/ has characters.
    assert found == {
        "a.parquet": ("parquet", None, 9),
        "b.jsonl": ("jsonl", None, 7),
        "d.jsonl.gz": ("jsonl", "gzip", 15),
        "c.ndjson": ("jsonl", None, 16),
    }


def test_the_version_changes_with_the_file(corpus: Path) -> None:
    path = corpus / "b.jsonl"
    (before,) = list_corpus([str(path)])
    assert list_corpus([str(path)]) == [before]
    path.write_bytes(b"y" * before.size_bytes)
    (after,) = list_corpus([str(path)])
    assert after.version != before.version


def test_globs(corpus: Path) -> None:
    assert names([f"{corpus}/*.jsonl"], corpus) == ["b.jsonl"]
    assert names([f"{corpus}/deep/**/*.ndjson"], corpus) == ["deep/er/c.ndjson"]
    assert names([f"{corpus}/?.parquet"], corpus) == ["a.parquet"]


def test_a_file_that_is_named_is_meant_whatever_it_is_called(corpus: Path) -> None:
    assert names([f"{corpus}/_f.jsonl"], corpus) == ["_f.jsonl"]
    (corpus / "part[1].jsonl").write_bytes(b"{}\n")
    assert names([f"{corpus}/part[1].jsonl"], corpus) == ["part[1].jsonl"]


def test_patterns_keep_their_order(corpus: Path) -> None:
    patterns = [f"{corpus}/deep", f"{corpus}/b.jsonl"]
    assert names(patterns, corpus) == ["deep/d.jsonl.gz", "deep/er/c.ndjson", "b.jsonl"]


def test_a_file_counts_once_however_often_and_however_it_is_named(corpus: Path) -> None:
    path = f"{corpus}/b.jsonl"
    spellings = [path, path, f"file://{path}", f"{corpus}/deep/../b.jsonl", f"{corpus}/b*"]
    assert names(spellings, corpus) == ["b.jsonl"]


@pytest.mark.parametrize("name", ["deep/readme.md", "deep/e.parquet.gz"])
def test_a_named_file_of_another_kind_is_refused(corpus: Path, name: str) -> None:
    with pytest.raises(Refused, match=rf"expected a name ending in \.parquet.*{Path(name).name}"):
        list_corpus([f"{corpus}/{name}"])


@pytest.mark.parametrize("pattern", ["absent", "absent.jsonl", "*.md", "_temporary/1"])
def test_a_pattern_that_names_nothing_is_refused(corpus: Path, pattern: str) -> None:
    with pytest.raises(Refused, match="there is no JSONL or Parquet file"):
        list_corpus([f"{corpus}/b.jsonl", f"{corpus}/{pattern}"])


def test_an_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(Refused, match="nosuchstore"):
        list_corpus(["nosuchstore://bucket/corpus"])


def test_files_in_another_store_keep_its_url() -> None:
    store = fsspec.filesystem("memory")
    for name in ("a.jsonl", "deep/b.parquet", "_c.jsonl"):
        store.pipe_file(f"/test_files/{name}", b"12345")
    expected = ["memory:///test_files/a.jsonl", "memory:///test_files/deep/b.parquet"]
    try:
        files = list_corpus(["memory://test_files"])
        assert [(file.uri, file.size_bytes) for file in files] == [(uri, 5) for uri in expected]
        assert [file.uri for file in list_corpus(["memory://test_files/*.jsonl"])] == expected[:1]
        assert [file.uri for file in list_corpus([expected[1]])] == expected[1:]
        with pytest.raises(Refused, match="memory://test_files/absent"):
            list_corpus(["memory://test_files/absent"])
    finally:
        store.rm("/test_files", recursive=True)
