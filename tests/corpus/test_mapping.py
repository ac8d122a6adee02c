"""Records become rows: by paths, constants, lists, one list of ids, conversations, own ids."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl

from dlogp_ray import store
from dlogp_ray.config import CorpusEntry
from dlogp_ray.corpus.carry import carry_types
from dlogp_ray.corpus.columns import check_columns
from dlogp_ray.corpus.files import list_corpus
from dlogp_ray.corpus.mapping import RowMap, root_of
from dlogp_ray.corpus.paths import ALL, roots, value_at, with_value
from dlogp_ray.corpus.reading import read_jsonl, read_parquet
from dlogp_ray.corpus.sources import list_sources
from dlogp_ray.errors import Refused, RowRejected

RECORD = {
    "doc": {"id": 7, "query": "1+2="},
    "resps": [["3", "4"]],
    "a.b": "a name that looks like a path",
    "turns": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("doc.query", "1+2="),
        ("resps[0][0]", "3"),
        ("resps[-1][-1]", "4"),
        ("resps[1][0]", None),
        ("doc.query.more", None),
        ("nowhere", None),
        ("a.b", "a name that looks like a path"),
        ("no path [at all", None),
        ("turns[?role=='assistant'].content | [0]", "y"),
        ("length(doc.id)", None),  # which has no length
    ],
)
def test_a_path_leads_to_a_value_or_to_nothing(path: str, value: Any) -> None:
    assert value_at(RECORD, path) == value


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("doc.query", {"doc", "doc.query"}),
        ("resps[0][0]", {"resps", "resps[0][0]"}),
        ("[doc.id, turns[0].role]", {"doc", "turns", "[doc.id, turns[0].role]"}),
        ("plain", {"plain"}),
        ("two words", {"two words"}),
        ("*.id", {ALL, "*.id"}),
    ],
)
def test_what_a_path_may_look_at_is_read(path: str, names: set[str]) -> None:
    assert roots(path) == names


def test_another_value_takes_a_place_and_the_record_stays() -> None:
    changed = with_value(RECORD, "doc.query", "2")
    assert (changed["doc"], RECORD["doc"]) == ({"id": 7, "query": "2"}, {"id": 7, "query": "1+2="})
    assert with_value(RECORD, "a.b", 1)["a.b"] == 1


def made(record: dict[str, Any], **fields: Any) -> list[Any]:
    entry = CorpusEntry.model_validate({"path": "/runs/dumps"} | fields)
    row_map = RowMap(entry, "/runs/dumps/")
    rows = list(row_map.rows([(40, record)], "/runs/dumps/5/a.jsonl"))
    assert all(offset == 40 for offset, _ in rows)
    return [row for _, row in rows]


def rejection(record: dict[str, Any], **fields: Any) -> str:
    (row,) = made(record, **fields)
    assert isinstance(row, RowRejected)
    return row.error


def test_columns_are_filled_from_paths_and_constants_where_nothing_is() -> None:
    record = {"doc": {"q": "1"}, "reward": 0.5, "temperature": None}
    (row,) = made(
        record,
        columns={"prompt": "doc.q", "reward": "score", "level": "doc.level"},
        constants={"generator": "rl", "temperature": 0.7},
    )
    told = {"prompt": "1", "reward": None, "level": None, "generator": "rl", "temperature": 0.7}
    assert row == record | told
    assert record == {"doc": {"q": "1"}, "reward": 0.5, "temperature": None}


def test_columns_may_change_places() -> None:
    swapped = {"prompt": "response", "response": "prompt"}
    (row,) = made({"prompt": "a", "response": "b"}, columns=swapped)
    assert row == {"prompt": "b", "response": "a"}


def test_a_record_of_lists_becomes_rows() -> None:
    record = {"id": "p", "prompt": "1", "out": {"texts": ["a", "b"]}, "scores": [0.0, 1.0]}
    columns = {"sample_id": "id", "response": "out.texts", "reward": "scores"}
    rows = made(record, explode=["out.texts", "scores"], columns=columns)
    assert [(r["sample_id"], r["response"], r["reward"], r["prompt"]) for r in rows] == [
        ("p/0", "a", 0.0, "1"),
        ("p/1", "b", 1.0, "1"),
    ]
    assert made({"texts": []}, explode="texts") == []


def test_lists_that_do_not_fit_are_rejected_by_their_names() -> None:
    record = {"a": [1, 2], "b": [1], "c": 3}
    assert "other lengths: a 2, b 1" in rejection(record, explode=["a", "b"])
    assert "'c': expected a list, got int" in rejection(record, explode=["c"])
    assert "nothing at 'd.e'" in rejection(record, explode=["d.e"])


@pytest.mark.parametrize(
    ("split", "record", "prompt", "response", "mask"),
    [
        # [prompt, prompt, answer, tool, answer, padding]
        (
            {"ids": "t", "mask": "m", "length": "n[0]"},
            {"t": [5, 6, 7, 8, 9, 0], "m": [0, 0, 1, 0, 1, 0], "n": [5]},
            [5, 6],
            [7, 8, 9],
            [1, 0, 1],
        ),
        ({"ids": "t", "response_length": "r"}, {"t": [5, 6, 7], "r": 1}, [5, 6], [7], None),
        ({"ids": "t", "prompt_length": "p"}, {"t": [5, 6, 7], "p": 1}, [5], [6, 7], None),
        (
            {"ids": "t", "prompt_length": "p", "length": "n"},
            {"t": [5, 6, 7, 0], "p": 1, "n": 3},
            [5],
            [6, 7],
            None,
        ),
        ({"ids": "t", "mask": "m"}, {"t": [5, 6], "m": [0, 0]}, [5, 6], [], []),
    ],
)
def test_one_list_of_ids_is_cut(
    split: dict[str, str], record: dict[str, Any], prompt: list[int], response: list[int], mask: Any
) -> None:
    (row,) = made(record, split=split)
    assert (row["prompt_ids"], row["response_ids"]) == (prompt, response)
    assert row.get("response_mask") == mask


@pytest.mark.parametrize(
    ("split", "record", "said"),
    [
        ({"ids": "t", "mask": "m"}, {"t": [1, 2, 3], "m": [0, 1]}, "'m' has 2 values for 3 ids"),
        ({"ids": "t", "mask": "m"}, {"t": [1]}, "'m': expected a list, got nothing"),
        ({"ids": "t", "prompt_length": "p"}, {"t": "1", "p": 1}, "'t': expected a list, got str"),
        (
            {"ids": "t", "prompt_length": "p", "length": "n"},
            {"t": [1, 2], "p": 1, "n": 3},
            "'n': expected a length of 0 to 2, what the list has, got 3",
        ),
        ({"ids": "t", "response_length": "r"}, {"t": [1], "r": True}, "'r': expected a length"),
        ({"ids": "t", "response_length": "r"}, {"t": [1], "r": -1}, "got -1"),
    ],
)
def test_a_list_that_can_not_be_cut_is_rejected(
    split: dict[str, str], record: dict[str, Any], said: str
) -> None:
    assert said in rejection(record, split=split)


@pytest.mark.parametrize(
    "split", [{"ids": "t"}, {"ids": "t", "mask": "m", "prompt_length": "p"}], ids=str
)
def test_a_list_is_cut_in_one_way(split: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected one of mask, prompt_length, response_length"):
        CorpusEntry.model_validate({"path": "x", "split": split})


@pytest.mark.parametrize(
    "turns",
    [
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
        ],
        [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"},
        ],
    ],
)
def test_the_last_message_is_the_answer(turns: list[dict[str, str]]) -> None:
    (row,) = made({"conversations": turns}, columns={"conversation": "conversations"})
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert (row["messages"], row["response"]) == (asked, "a")


@pytest.mark.parametrize(
    "turns", ["text", [], [{"role": "assistant", "content": "a"}], [{"role": "user"}] * 2, [1, 2]]
)
def test_a_conversation_without_an_answer_is_rejected(turns: Any) -> None:
    error = rejection({"c": turns}, columns={"conversation": "c"})
    assert "'c': expected a list of messages of which the last is the assistant's answer" in error


def test_ids_are_made_of_place_and_number() -> None:
    (row,) = made({"response": "a"}, sample_id="auto")
    assert row["sample_id"] == "5/a.jsonl:40"
    rows = made({"r": ["a", "b"]}, sample_id="auto", explode="r", constants={"generator": "rl"})
    assert [row["sample_id"] for row in rows] == ["rl/5/a.jsonl:40/0", "rl/5/a.jsonl:40/1"]


@pytest.mark.parametrize(
    ("pattern", "file", "root"),
    [
        ("/d/a.jsonl", "/d/a.jsonl", "/d/"),
        ("/d", "/d/x/a.jsonl", "/d/"),
        ("/d/", "/d/x/a.jsonl", "/d/"),
        ("/d/*/r.jsonl", "/d/x/r.jsonl", "/d/"),
        ("/d/step_*/r.jsonl", "/d/step_1/r.jsonl", "/d/"),
        ("s3://b/d/**.jsonl", "s3://b/d/x.jsonl", "s3://b/d/"),
    ],
)
def test_names_begin_below_what_an_entry_spells_out(pattern: str, file: str, root: str) -> None:
    assert root_of(pattern, file) == root


def entries(*given: dict[str, Any]) -> list[CorpusEntry]:
    return [CorpusEntry.model_validate(one) for one in given]


def test_a_file_has_the_entry_that_names_it(tmp_path: Path) -> None:
    for name in ("a/x.jsonl", "b/y.jsonl"):
        write_jsonl(tmp_path / name, [{}])
    paths = [str(tmp_path / name) for name in "ab"]
    files, maps = list_sources(
        entries({"path": paths[0]}, {"path": paths[1], "constants": {"generator": "rl"}})
    )
    assert [(Path(file.uri).name, file.source) for file in files] == [
        ("x.jsonl", 0),
        ("y.jsonl", 1),
    ]
    assert [row_map.root for row_map in maps] == [f"{path}/" for path in paths]


def test_two_entries_that_say_other_things_of_a_file_are_refused(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{}]))
    rl = {"path": path, "constants": {"generator": "rl"}}
    with pytest.raises(Refused, match="both name it, and say other things of it"):
        list_sources(entries({"path": str(tmp_path)}, rl))
    assert len(list_sources(entries({"path": str(tmp_path)}, {"path": path}))[0]) == 1


def test_files_of_one_name_need_generators_for_ids_of_their_own(tmp_path: Path) -> None:
    paths = [str(write_jsonl(tmp_path / n / "r.jsonl", [{}])) for n in ("base", "rl")]
    auto = {"sample_id": "auto"}
    with pytest.raises(Refused, match=r"are both called 'r\.jsonl' below their entries"):
        list_sources(entries(*({"path": path} | auto for path in paths)))
    named = [
        {"path": path, "constants": {"generator": name}} | auto
        for path, name in zip(paths, ("base", "rl"), strict=True)
    ]
    _, maps = list_sources(entries(*named))
    assert [m.name_of(p) for m, p in zip(maps, paths, strict=True)] == [
        "base/r.jsonl",
        "rl/r.jsonl",
    ]
    list_sources(entries({"path": str(tmp_path)} | auto))


def test_json_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    record = {"doc": {"id": 1, "q": "1"}, "resps": [["a"], ["b"]], "other": [1]}
    jsonl = write_jsonl(tmp_path / "c.jsonl", [record])
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "c.parquet")
    entry = CorpusEntry(
        path=str(tmp_path),
        columns={"sample_id": "doc.id", "prompt": "doc.q", "response": "resps[0]"},
        explode=("resps",),
    )
    row_map = RowMap(entry)
    (one,) = list_corpus([str(jsonl)])
    (other,) = list_corpus([str(tmp_path / "c.parquet")])
    wanted = row_map.reads([])
    assert "other" not in (wanted or ())
    found = [
        list(row_map.rows(records, "f"))
        for records in (
            read_jsonl(one.uri, one.entry, 0, None, None),
            read_parquet(other.uri, other.entry, 0, 1, wanted),
        )
    ]
    names = ("sample_id", "prompt", "response")
    (from_json, from_parquet) = ([[r[n] for n in names] for _, r in rows] for rows in found)
    assert from_json == from_parquet == [["1/0", "1", "a"], ["1/1", "1", "b"]]


def test_a_path_into_nothing_is_refused_with_what_is_there(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [RECORD | {"sample_id": "a"}])
    (file,) = list_corpus([str(path)])
    columns = {"prompt": "doc.query", "response": "resps[0][0]"}
    good = RowMap(CorpusEntry(path=str(path), columns=columns))
    check_columns([file], (good,))
    bad = RowMap(CorpusEntry(path=str(path), columns=columns | {"response": "resps[2][0]"}))
    with pytest.raises(
        Refused, match=r"no column 'resps\[2\]\[0\]'.* have doc, resps, a\.b, turns"
    ):
        check_columns([file], (bad,))
    none = RowMap(CorpusEntry(path=str(path), columns=columns, explode=("turns", "resps")))
    with pytest.raises(Refused, match="other lengths: turns 2, resps 1"):
        check_columns([file], (none,))


def test_carried_columns_may_be_paths(tmp_path: Path) -> None:
    record = {"doc": {"level": 3}, "scores": [0.5, 1.0]}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "c.parquet")
    for path in (write_jsonl(tmp_path / "c.jsonl", [record]), tmp_path / "c.parquet"):
        (file,) = list_corpus([str(path)])
        columns = {"level": "doc.level", "score": "scores"}
        row_map = RowMap(CorpusEntry(path=str(path), columns=columns, explode=("scores",)))
        types = carry_types(["level", "score"], file, row_map)
        assert types == {"level": "int64", "score": "float64"}


def test_conversations_are_seen_in_both_kinds_of_files(tmp_path: Path) -> None:
    row = {"sample_id": "a", "conversation": RECORD["turns"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "c.parquet")
    for path in (write_jsonl(tmp_path / "c.jsonl", [row]), tmp_path / "c.parquet"):
        check_columns(*list_sources(entries({"path": str(path)})))


def test_made_ids_are_the_same_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    store.create(f"{bucket}/dumps/5/a.jsonl", b'{"response": "a"}\n')
    write_jsonl(tmp_path / "dumps/5/a.jsonl", [{"response": "a"}])
    names = []
    for place in (bucket, str(tmp_path)):
        for path in (f"{place}/dumps", f"{place}/dumps/*/*.jsonl", f"{place}/dumps/5/a.jsonl"):
            files, (row_map,) = list_sources(entries({"path": path, "sample_id": "auto"}))
            names.append(row_map.name_of(files[0].uri))
    assert names == ["5/a.jsonl", "5/a.jsonl", "a.jsonl"] * 2
