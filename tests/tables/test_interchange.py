"""The scores table opens unchanged in what people read tables with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
from datasets import load_dataset
from score_tables import made_up_run, score_rows

from dlogp_ray.tables.run import Run

COLUMNS = ("sample_id", "policy", "response_ids", "response_mask", "delta_logp", "rank_base")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("interchange")
    return made_up_run(str(folder / "r"), [score_rows(12), score_rows(7, seed=1)])


def with_duckdb(folder: Path) -> list[dict[str, Any]]:
    names = ", ".join(COLUMNS)
    query = f"SELECT {names} FROM read_parquet('{folder}/*.parquet')"
    found: list[dict[str, Any]] = duckdb.sql(query).to_arrow_table().to_pylist()
    return found


def with_polars(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pl.read_parquet(folder / "*.parquet").select(COLUMNS).to_dicts()
    return found


def with_pandas(folder: Path) -> list[dict[str, Any]]:
    frame = pd.concat([pd.read_parquet(path) for path in sorted(folder.iterdir())])
    found: list[dict[str, Any]] = frame[list(COLUMNS)].to_dict("records")
    return found


def with_datasets(folder: Path) -> list[dict[str, Any]]:
    files = [str(path) for path in sorted(folder.iterdir())]
    cache = str(folder.parent / "cache")
    loaded = load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    return list(loaded.select_columns(list(COLUMNS)))


@pytest.mark.parametrize("read", [with_duckdb, with_polars, with_pandas, with_datasets])
def test_rows_are_the_same(read: Callable[[Path], list[dict[str, Any]]], run: Run) -> None:
    expected = {row["sample_id"]: row for row in run.dataset().to_table().to_pylist()}
    found = read(Path(run.uri) / "scores")
    assert len(found) == len(expected) == 19
    for row in found:
        mine = expected[row["sample_id"]]
        assert row["policy"] == mine["policy"]
        for name in ("response_ids", "response_mask", "delta_logp"):
            assert np.array_equal(row[name], mine[name])
        assert row["rank_base"] is None
