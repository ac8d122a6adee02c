"""The view ``tokens`` has a row a token, of every kind of table and whatever a query names."""

from pathlib import Path

import pytest
from weights_tables import made_up_weights, weights_row

QUERIES = {
    "SELECT count(*) FROM tokens": [(4,)],
    "SELECT sample_id, count(*) FROM tokens GROUP BY 1 ORDER BY 1": [("a", 3), ("b", 1)],
    "SELECT sample_id, token_id FROM tokens ORDER BY ALL": [("a", 5), ("a", 6), ("a", 8), ("b", 7)],
    "SELECT max(position) FROM tokens": [(2,)],
    "SELECT sum(loss_weight) FROM tokens": [(4.5,)],
}


@pytest.mark.parametrize("query", QUERIES)
def test_of_weights(query: str, tmp_path: Path) -> None:
    """A rejected row has no tokens."""
    rows = [weights_row("a", [5, 6, 8], [1.0, 2.0, 1.0]), weights_row("b", [7], [0.5])]
    rejected = weights_row("c", [], [], status="too_long", error="expected less")
    run = made_up_weights(str(tmp_path / "w"), [[*rows, rejected]])
    assert run.sql(query).fetchall() == QUERIES[query]
