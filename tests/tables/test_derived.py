"""What was made from a run is read where it is whole, and made from that run's rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from score_tables import made_up_run, score_rows
from weights_tables import made_up_weights, weights_row

import dlogp_ray
from dlogp_ray.config import SparsityConfig
from dlogp_ray.errors import Damaged
from dlogp_ray.tables.run import Run, open_run
from dlogp_ray.tables.sealed import SEAL
from dlogp_ray.tables.sealing import seal
from dlogp_ray.tables.source import source_hash


def analysed(uri: str, seed: int) -> Run:
    run = made_up_run(uri, [score_rows(9, seed=seed), score_rows(9, seed=seed + 1)])
    dlogp_ray.sparsity(SparsityConfig(run=uri, run_on="here"), progress=False)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two objects and an analysis; beside it ``other``, the same of other rows."""
    analysed(str(tmp_path / "other"), 5)
    return analysed(str(tmp_path / "r"), 0)


def folder_of(run: Run) -> Path:
    return Path(run.uri, "sparsity/all")


def one_figure(run: Run) -> str:
    path = folder_of(run) / "figures.parquet"
    table = pq.read_table(path)
    values = [0.5, *table["value"].to_pylist()[1:]]
    at = table.schema.get_field_index("value")
    pq.write_table(table.set_column(at, table.schema.field(at), [values]), path)
    return r"figures\.parquet was changed, or is being made"


def a_table_of_another_analysis(run: Run) -> str:
    theirs = folder_of(open_run(f"{run.uri}/../other"))
    shutil.copy(theirs / "figures.parquet", folder_of(run))
    return r"figures\.parquet was changed, or is being made"


def another_runs_analysis(run: Run) -> str:
    shutil.rmtree(folder_of(run))
    shutil.copytree(folder_of(open_run(f"{run.uri}/../other")), folder_of(run))
    return "was made from other rows"


def record_edited(run: Run) -> str:
    path = folder_of(run) / "sparsity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tables": {}}))
    return r"sparsity\.json is not as it was written"


def other_rows_since(run: Run) -> str:
    theirs = Path(run.uri, "../again")
    other = made_up_run(str(theirs), [score_rows(9), score_rows(9, seed=7)])
    assert other.origin == run.origin
    shutil.copy(other.object_uri("part-00000001"), run.object_uri("part-00000001"))
    Path(run.path(SEAL)).unlink()
    seal(run)
    return "was made from other rows"


@pytest.mark.parametrize(
    "mischief",
    [
        one_figure,
        a_table_of_another_analysis,
        another_runs_analysis,
        record_edited,
        other_rows_since,
    ],
)
def test_an_analysis_is_of_this_run_and_as_it_was_made(
    mischief: Callable[[Run], str], run: Run
) -> None:
    config = SparsityConfig(run=run.uri, run_on="here")
    whole = run.figures("all")
    expected = mischief(run)
    with pytest.raises(Damaged, match=expected) as raised:
        run.figures("all")
    assert f"dlogp sparsity {run.uri} --name all" in str(raised.value)
    with pytest.raises(Damaged, match=expected):
        run.sql("SELECT * FROM sparsity")
    assert run.sql("SELECT count(*) FROM scores").fetchall() == [(18,)]  # which is whole
    dlogp_ray.sparsity(config, progress=False)
    assert run.figures("all").schema == whole.schema
    assert (run.figures("all").num_rows == whole.num_rows) or mischief is other_rows_since


def test_weights_of_other_rows_are_not_read_beside_these(run: Run) -> None:
    uri = run.path("weights/theirs")
    rows = [weights_row("s", [2, 3], [1.0, 2.0])]
    made_up_weights(uri, [rows], scores=source_hash(open_run(f"{run.uri}/../other")))
    with pytest.raises(Damaged, match="weights/theirs was made from other rows"):
        run.sql("SELECT * FROM weights")
    shutil.rmtree(uri)
    made_up_weights(uri, [rows], scores=source_hash(run))
    assert run.sql("SELECT name FROM weights").fetchall() == [("theirs",)]


def test_an_analysis_from_before_its_record_had_hashes_is_read(run: Run) -> None:
    path = folder_of(run) / "sparsity.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({name: said[name] for name in ("config", "result", "fingerprint")}))
    assert run.figures("all").num_rows > 0
    assert run.sql("SELECT count(*) FROM sparsity").fetchall()[0][0] > 0
