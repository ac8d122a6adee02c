"""Which rows are meant: a condition over a row's own columns, and whole groups of a share."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlogp_ray.config import CorpusEntry
from dlogp_ray.corpus.choosing import Condition, sampled
from dlogp_ray.corpus.mapping import RowMap
from dlogp_ray.errors import Refused, RowRejected
from dlogp_ray.status import Status

ROWS: list[dict[str, Any]] = [
    {"reward": 1.0, "step": 300, "source": "web", "doc": {"level": 3}},
    {"reward": 0.0, "step": 400, "source": "it's", "doc": {"level": 1}},
    {"reward": None, "step": 500, "source": None, "doc": None},
    {"step": 600},
    {"reward": 0.5, "step": 100, "source": "web", "doc": {"level": 2}},
]


def chosen(where: str, rows: list[Any] = ROWS) -> list[int]:
    return [at for at, _ in Condition(where).chosen(enumerate(rows))]


@pytest.mark.parametrize(
    ("where", "places"),
    [
        ("reward > 0", [0, 4]),
        ("reward > 0 AND step >= 300", [0]),
        ("reward IS NULL", [2, 3]),
        ("source = 'it''s'", [1]),
        ("source IN ('web', 'code')", [0, 4]),
        ("doc.level >= 2", [0, 4]),
        ("REWARD > 0", [0, 4]),
        ("length(source) = 3", [0, 4]),
        ("true", [0, 1, 2, 3, 4]),
        ("NULL", []),
        ("reward", [0, 4]),  # a number is true where it is not 0
    ],
)
def test_what_is_true_is_chosen_and_null_is_not(where: str, places: list[int]) -> None:
    assert chosen(where) == places


ABOVE_1 = Condition("step > 1")


@given(st.lists(st.none() | st.integers(-5, 5), max_size=200))
def test_it_is_what_a_plain_loop_gives_whatever_is_held_at_once(steps: list[int | None]) -> None:
    rows = [{"step": step} for step in steps]
    expected = [at for at, step in enumerate(steps) if step is not None and step > 1]
    assert [at for at, _ in ABOVE_1.chosen(enumerate(rows))] == expected


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("reward >", "syntax error"),
        ("reward > 0; DROP TABLE x", "syntax error"),
        ("reward > 0) FROM other WHERE (true", "syntax error"),
        ("reward > (SELECT avg(reward) FROM rows)", "the row's own columns alone"),
        ("EXISTS (SELECT 1 FROM read_csv('/etc/passwd'))", "the row's own columns alone"),
        ("row_number() OVER () < 3", "the row's own columns alone"),
        ("random() < 0.1", "random gives another answer each time"),
        ("now() > '2020-01-01'", "gives another answer each time"),
        (" ", "it is empty"),
    ],
)
def test_what_is_no_condition_of_a_row_is_refused(where: str, said: str) -> None:
    with pytest.raises(Refused, match=f"{said}.*(Expected a condition, as in|$)"):
        Condition(where)


def test_a_row_of_which_it_can_not_be_said_is_rejected_and_the_others_go_on() -> None:
    rows: list[Any] = [{"step": 1}, {"step": "many"}, {"step": 400}]
    rows.insert(2, RowRejected(Status.MALFORMED, "no row"))
    found = list(Condition("step >= 300").chosen(enumerate(rows)))
    assert [at for at, _ in found] == [1, 2, 3]
    (_, wrong), (_, malformed), (_, row) = found
    assert isinstance(wrong, RowRejected)
    assert "where: step >= 300: " in wrong.error
    assert malformed is rows[2]
    assert row == {"step": 400}


def test_files_are_out_of_reach(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hush")
    condition = f"content = (SELECT content FROM read_text('{secret}'))"
    with pytest.raises(Refused, match="the row's own columns alone"):
        Condition(condition)


def test_groups_are_there_as_a_whole_or_not() -> None:
    rows = [{"group_id": f"g{i // 8}", "sample_id": f"s{i}"} for i in range(8_000)]
    kept = Counter(row["group_id"] for _, row in sampled(enumerate(rows), 0.1))
    assert set(kept.values()) == {8}
    # Of 1,000 groups 100 are expected, with a standard deviation of √(1000·0.1·0.9) = 9.5.
    assert abs(len(kept) - 100) < 4 * 9.5
    again = {row["group_id"] for _, row in sampled(enumerate(reversed(rows)), 0.1)}
    assert again == set(kept)
    more = {row["group_id"] for _, row in sampled(enumerate(rows), 0.3)}
    assert set(kept) < more


def test_a_row_without_a_group_is_one_of_its_own() -> None:
    rows = [{"sample_id": i} for i in range(1_000)]
    assert 50 < len(list(sampled(enumerate(rows), 0.1))) < 150


def test_mapped_columns_can_be_asked_for() -> None:
    entry = CorpusEntry(path="d", columns={"reward": "doc.score"}, where="reward > 0 AND step = 1")
    records = [{"doc": {"score": score}, "step": 1} for score in (0.0, 1.0)]
    rows = list(RowMap(entry).rows(enumerate(records), "f"))
    assert [at for at, _ in rows] == [1]
    assert {"step", "doc"} <= (RowMap(entry).reads([]) or set())
