"""Rollouts of other programs, scored: as a plain corpus is, and as their samplers saw them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_rows, write_jsonl

import dlogp_ray
from dlogp_ray.tables.run import Run
from dlogp_ray.tables.verification import verify


@pytest.fixture(scope="module")
def plain(config_defaults: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a plain corpus of the RL policy's texts."""
    folder = tmp_path_factory.mktemp("plain")
    rows = [row | {"generator": "rl", "reward": 0.5} for row in make_rows(24)]
    corpus = str(write_jsonl(folder / "c.jsonl", rows))
    return scored(config_defaults, folder, corpus=corpus)


def scored(defaults: dict[str, Any], folder: Path, **fields: Any) -> Run:
    config = dlogp_ray.ScoreConfig.from_mapping(defaults | {"output": str(folder)} | fields)
    result = dlogp_ray.score(config, progress=False)
    assert result.exit_code == 0
    return dlogp_ray.open_run(result.run)


def by_text(run: Run, column: str) -> dict[str, Any]:
    rows = run.dataset().to_table().to_pylist()
    return {json.dumps([row["prompt_hash"], row["response_ids"]]): row[column] for row in rows}


def nemo_rl(row: dict[str, Any], logps: list[float], shift: int = 0) -> dict[str, Any]:
    """A padded line; its log-probabilities stand beside tokens that are ``shift`` before theirs."""
    n, m = len(row["prompt_ids"]), len(row["response_ids"])
    padded = [*row["prompt_ids"], *row["response_ids"], 0, 0]
    mask = [*[0] * n, *[1] * m, 0, 0]
    values = [*[0.0] * n, *logps, 0.0, 0.0]
    return {
        "input_lengths": [n + m],
        "token_ids": [padded],
        "token_loss_mask": [mask],
        "generation_logprobs": [values[shift:] + values[:shift]],
        "rewards": [0.5],
    }


def open_instruct(row: dict[str, Any], logps: list[float], shift: int = 0) -> dict[str, Any]:
    return {
        "step": 1,
        "sample_idx": int(row["sample_id"][1:]),
        "prompt_idx": 0,
        "prompt_tokens": row["prompt_ids"],
        "response_tokens": row["response_ids"],
        "logprobs": logps[shift:] + logps[:shift],
        "reward": 0.5,
    }


@pytest.mark.parametrize("layout", [nemo_rl, open_instruct])
def test_a_format_gives_the_plain_corpus_s_scores_and_the_sampler_s_log_probabilities(
    layout: Any, plain: Run, config_defaults: dict[str, Any], tmp_path: Path
) -> None:
    """Of a sampler that is the policy itself: what it saw is at the noise floor of the scores."""
    logp = by_text(plain, "logp_rl")
    ids = {row["sample_id"]: row for row in plain.dataset().to_table().to_pylist()}
    floor = plain.noise.floors["logp_rl"] if plain.noise else 0.0
    mismatches = {}
    for shift in (0, 1):
        folder = tmp_path / str(shift)
        records = [layout(row, ids[row["sample_id"]]["logp_rl"], shift) for row in make_rows(24)]
        entry = {
            "path": str(write_jsonl(folder / "r.jsonl", records)),
            "format": layout.__name__,
            "constants": {"generator": "rl"},
        }
        run = scored(config_defaults, folder, corpus=[entry], carry=["rollout_logp"])
        assert by_text(run, "logp_rl") == logp
        assert by_text(run, "delta_logp") == by_text(plain, "delta_logp")
        assert set(by_text(run, "reward").values()) == {0.5}
        saw = by_text(run, "rollout_logp")
        mismatches[shift] = max(
            float(np.abs(np.subtract(saw[text], logp[text])).max()) for text in logp
        )
    assert mismatches[0] <= floor
    assert mismatches[1] > 100 * max(floor, 1e-6)


def test_a_run_of_chosen_and_exploded_rows_of_parquet_is_whole(
    config_defaults: dict[str, Any], tmp_path: Path
) -> None:
    """Other rows than records: 6 of them two each, of which every third is chosen."""
    rows = make_rows(12)
    records = [
        {
            "id": f"p{i}",
            "prompt_ids": rows[2 * i]["prompt_ids"],
            "outputs": [rows[2 * i]["response_ids"], rows[2 * i + 1]["response_ids"]],
            "n": [2 * i, 2 * i + 1],
        }
        for i in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    run = scored(
        config_defaults,
        tmp_path,
        corpus=str(tmp_path / "c.parquet"),
        columns={"sample_id": "id", "response_ids": "outputs"},
        explode=["outputs", "n"],
        where="n % 3 = 0",
        unit_tokens=40,
    )
    found = run.dataset().to_table(["sample_id", "response_ids"]).to_pylist()
    assert [row["sample_id"] for row in found] == ["p0/0", "p1/1", "p3/0", "p4/1"]
    assert [row["response_ids"] for row in found] == [rows[n]["response_ids"] for n in (0, 3, 6, 9)]
    assert verify(run) == []
