"""What a query reads of a store: the columns that it names, of the objects that it needs."""

import uuid

import pytest
from s3_server import FaultyProxy
from score_tables import made_up_run, score_rows

from dlogp_ray import store
from dlogp_ray.tables.run import Run, open_run

UNITS = 2


@pytest.fixture(scope="module")
def run(s3: FaultyProxy) -> Run:
    # Objects of 20 MB: DuckDB reads about a megabyte at a time.
    units = [score_rows(1_500, seed=seed, length=400) for seed in range(UNITS)]
    return made_up_run(f"s3://tests/{uuid.uuid4().hex[:12]}/r", units)


def share_read(s3: FaultyProxy, run: Run, query: str) -> float:
    whole = sum(len(store.read(run.object_uri(f"part-{i:08d}"))) for i in range(UNITS))
    before = s3.sent
    assert open_run(run.uri).sql(query).fetchall()
    return (s3.sent - before) / whole


# js is 11 % of an object's bytes; each of 13 large columns may come with a megabyte more, 5 %.
@pytest.mark.parametrize(
    ("query", "least", "most"),
    [
        ("SELECT count(*) FROM scores", 0.0, 0.01),
        ("SELECT avg(list_sum(js)) FROM scores", 0.1, 0.2),
        ("SELECT avg(js) FROM tokens", 0.1, 0.25),
        ("SELECT sum(hash(tokens)) FROM tokens", 0.9, 1.65),
        ("SELECT * FROM scores WHERE sample_id = 'rl-base-1-7'", 0.1, 0.83),  # is in one object
    ],
)
def test_a_query_reads_what_it_needs(
    query: str, least: float, most: float, run: Run, s3: FaultyProxy
) -> None:
    assert least <= share_read(s3, run, query) <= most
