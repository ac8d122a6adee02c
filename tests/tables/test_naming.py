"""The tokens view reads what a query names, and gives what it would give with all columns."""

from pathlib import Path

import duckdb
import pytest
from score_tables import made_up_run, score_rows

from dlogp_ray.tables.naming import names_in
from dlogp_ray.tables.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("naming")
    return made_up_run(str(folder / "r"), [score_rows(30), score_rows(20, seed=1)])


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM tokens",
        "FROM tokens",
        "SELECT COLUMNS('d.*') FROM tokens",
        "SELECT t FROM tokens t",
        "SELECT tokens FROM tokens",
        "SELECT count(*) FROM tokens a NATURAL JOIN tokens b",
        "DESCRIBE tokens",
        "SUMMARIZE tokens",
        "PIVOT tokens ON policy USING avg(delta_logp)",
    ],
)
def test_what_may_mean_any_column_names_none(query: str) -> None:
    assert names_in(duckdb.connect(), query) is None


QUERIES = {
    'SELECT generator, avg("delta_logp") FROM tokens t WHERE t.position < 3 GROUP BY ALL': {
        "delta_logp"
    },
    "SELECT count(*) FROM tokens": set(),
    "WITH x AS (SELECT JS j, policy FROM tokens) SELECT policy, max(j) FROM x GROUP BY 1": {"js"},
    "SELECT sum(delta_logp) FILTER (js > 0.1), max(position) FROM tokens": {"delta_logp", "js"},
    "SELECT token_id, count(*) n FROM tokens GROUP BY token_id ORDER BY n, token_id": {
        "response_ids"
    },
    "SELECT a.position, max(a.js) FROM tokens a JOIN tokens b USING (position) GROUP BY 1"
    " ORDER BY 1": {"js"},
    "SELECT avg(list_sum(delta_logp)) FROM scores": {"delta_logp"},
}


@pytest.mark.parametrize("query", QUERIES)
def test_only_what_is_named_is_read_and_the_answer_is_the_same(query: str, run: Run) -> None:
    relation = run.sql(query)
    plan = "".join(relation.explain().split())
    lists = {"response_ids", "logp_base", "logp_rl", "delta_logp", "entropy_base", "js", "rank_rl"}
    assert {name for name in lists if name in plan} == QUERIES[query]
    everything = query.replace("FROM tokens", "FROM (SELECT * FROM tokens)")
    assert sorted(map(str, relation.fetchall())) == sorted(map(str, run.sql(everything).fetchall()))


def test_a_list_that_was_not_computed_is_null_in_every_token(tmp_path: Path) -> None:
    rows = score_rows(10)
    run = made_up_run(str(tmp_path / "r"), [rows.drop_columns(["delta_logp"])])
    tokens = len(rows["js"].combine_chunks().flatten())
    query = "SELECT count(*), count(delta_logp), count(js) FROM tokens"
    assert run.sql(query).fetchall() == [(tokens, 0, tokens)]
