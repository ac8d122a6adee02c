"""The score job through Ray: right values, one object a unit, resume, isolation of failures."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_adapter, make_policy_folder, make_rows, write_jsonl
from rich.console import Console

import dlogp_ray
from dlogp_ray.analysis.overview import overview, print_overview
from dlogp_ray.config import ScoreConfig
from dlogp_ray.errors import Damaged, FingerprintMismatch, Refused
from dlogp_ray.pipelines.repair import repair
from dlogp_ray.pipelines.result import print_result
from dlogp_ray.tables.verification import verify

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def rows_of(run_uri: str) -> list[dict[str, Any]]:
    """All rows of a run, in an order that does not depend on how it was made."""
    rows: list[dict[str, Any]] = dlogp_ray.open_run(run_uri).dataset().to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["source_file"], row["source_offset"], row["policy"]))


def plain_logp(folder: Path, row: dict[str, Any]) -> np.ndarray:
    """log-softmax of a plain float32 forward at the response's positions: [response, v]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([row["prompt_ids"] + row["response_ids"]])).logits[0]
    start = len(row["prompt_ids"]) - 1
    return torch.log_softmax(logits, -1)[start : start + len(row["response_ids"])].numpy()


def test_jsonl_and_parquet_become_one_table_with_the_plain_forward_s_values(
    tmp_path: Path, make_config: Any, policy_folders: dict[str, Path]
) -> None:
    rows = make_rows(60)
    write_jsonl(tmp_path / "corpus/a.jsonl", rows[:30])
    pq.write_table(pa.Table.from_pylist(rows[30:]), tmp_path / "corpus/b.parquet", row_group_size=8)
    result = dlogp_ray.score(make_config(corpus=str(tmp_path / "corpus"), actors=2), progress=False)

    assert result.exit_code == 0
    assert result.sealed
    assert result.units == result.units_done == result.units_scored > 2
    assert result.rows == 60
    assert result.tokens == sum(len(row["response_ids"]) for row in rows)
    table = {row["sample_id"]: row for row in rows_of(result.run)}
    assert set(table) == {row["sample_id"] for row in rows}
    for row in rows[::7]:
        base, rl = (plain_logp(policy_folders[name], row) for name in ("base", "rl"))
        ids = row["response_ids"]
        at = np.arange(len(ids)), ids
        found = table[row["sample_id"]]
        # Two float32 forwards of other batch shapes: rounding of order 1e-6, far below 1e-4.
        for name, expected in (
            ("logp_base", base[at]),
            ("delta_logp", rl[at] - base[at]),
            ("entropy_rl", -(np.exp(rl) * rl).sum(1)),
            ("kl_rl_base", (np.exp(rl) * (rl - base)).sum(1)),
        ):
            np.testing.assert_allclose(found[name], expected, atol=1e-4, rtol=0)
        assert found["rank_rl"] == (rl > rl[at][:, None]).sum(1).tolist()
        assert found["prompt_len"] == len(row["prompt_ids"])
        assert found["generator"] == row["generator"]


def test_a_finished_run_scores_nothing_more_and_says_the_same(
    tmp_path: Path, make_config: Any
) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(20))
    first = dlogp_ray.score(make_config(corpus=str(corpus)), progress=False)
    objects = {p: p.stat().st_mtime_ns for p in Path(first.run).rglob("*") if p.is_file()}
    second = dlogp_ray.score(make_config(corpus=str(corpus), actors=2), progress=False)
    assert second.units_scored == 0
    assert (second.rows, second.tokens, second.status) == (first.rows, first.tokens, first.status)
    assert objects == {p: p.stat().st_mtime_ns for p in Path(first.run).rglob("*") if p.is_file()}


def test_the_noise_floor_is_measured_once_and_found_everywhere(
    tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlogp_ray.pipelines import score as pipeline

    rows = make_rows(40)
    config = make_config(corpus=str(write_jsonl(tmp_path / "c.jsonl", rows)))
    first = dlogp_ray.score(config, progress=False)
    noise = first.noise
    assert noise is not None
    # So small a corpus is its own sample.
    assert (noise.texts, noise.tokens) == (40, sum(len(row["response_ids"]) for row in rows))
    assert set(noise.rebatched) == {"rl"}
    # Two layers in float32: a few roundings of 2^-24 of logits of about 10.
    assert noise.unresolved_nats is not None
    assert 0 < noise.unresolved_nats < 1e-5
    record = noise.model_dump()

    def places(result: dlogp_ray.ScoreResult) -> list[Any]:
        run = dlogp_ray.open_run(result.run)
        manifest = run.manifest().schema.metadata[b"dlogp_ray.noise"]
        return [
            json.loads(json.dumps(result.as_json()))["noise"],
            json.loads((Path(result.run) / "run.json").read_text())["noise"],
            json.loads((Path(result.run) / "_SUCCESS").read_text())["noise"],
            json.loads(manifest),
            json.loads(json.dumps(overview(run).as_json()))["noise"],
            run.noise and run.noise.model_dump(),
        ]

    assert places(first) == [record] * 6
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    print_result(first, console)
    print_overview(overview(dlogp_ray.open_run(first.run)), console)
    line = f"below {noise.unresolved_nats:.2g} nats (99 % of base against base, "
    assert printed.getvalue().count(line) == 2

    monkeypatch.setattr(pipeline, "sample_units", lambda units: pytest.fail("measured again"))
    assert places(dlogp_ray.score(config, progress=False)) == [record] * 6
    for name in ("_SUCCESS", "manifest.parquet", "scores/part-00000001.parquet"):
        (Path(first.run) / name).unlink()
    resumed = dlogp_ray.score(config, progress=False)
    assert resumed.units_scored == 1
    assert places(resumed) == [record] * 6


def test_only_missing_units_are_done(tmp_path: Path, make_config: Any) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(40))
    config = make_config(corpus=str(corpus))
    whole = dlogp_ray.score(config, progress=False)
    undisturbed = rows_of(whole.run)
    run = Path(whole.run)
    # As a run looks that was cut off after some of its units.
    for name in ("_SUCCESS", "manifest.parquet", "scores/part-00000001.parquet"):
        (run / name).unlink()
    kept = {p.name: p.stat().st_mtime_ns for p in (run / "scores").iterdir()}
    opened = dlogp_ray.open_run(whole.run)
    assert not opened.sealed
    again = dlogp_ray.score(config, progress=False)
    assert again.units_scored == 1
    assert again.sealed
    now = {p.name: p.stat().st_mtime_ns for p in (run / "scores").iterdir()}
    assert {name: now[name] for name in kept} == kept
    assert rows_of(whole.run) == undisturbed


def test_a_run_goes_on_with_its_own_units_whatever_would_be_cut_now(
    tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlogp_ray.pipelines import planning

    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(40))
    config = make_config(corpus=str(corpus))
    whole = dlogp_ray.score(config, progress=False)
    undisturbed = rows_of(whole.run)
    for name in ("_SUCCESS", "manifest.parquet", "scores/part-00000001.parquet"):
        (Path(whole.run) / name).unlink()
    cut = planning.cut_units
    # As a later version may do: twice as many units of the same corpus.
    monkeypatch.setattr(
        planning, "cut_units", lambda files, n, columns: cut(files, n // 2, columns)
    )
    again = dlogp_ray.score(config, progress=False)
    assert (again.units, again.units_scored) == (whole.units, 1)
    assert rows_of(whole.run) == undisturbed


def test_a_copy_of_the_policy_changes_nothing_exactly(tmp_path: Path, make_config: Any) -> None:
    folders = {n: str(make_policy_folder(tmp_path / n, seed=5)) for n in ("base", "copy")}
    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(20))
    result = dlogp_ray.score(make_config(corpus=str(corpus), policies=folders), progress=False)
    sums = "max(abs(delta_logp)), max(kl_rl_base), max(kl_base_rl), max(js), bool_and(top1_agree)"
    found = dlogp_ray.open_run(result.run).sql(f"SELECT {sums} FROM tokens").fetchall()
    assert found == [(0.0, 0.0, 0.0, 0.0, True)]


def test_several_policies_one_row_each_and_one_policy_alone(
    tmp_path: Path, make_config: Any, policy_folders: dict[str, Path]
) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(10))
    third = make_policy_folder(tmp_path / "third", seed=2)
    policies = {
        "base": str(policy_folders["base"]),
        "early": {"path": str(policy_folders["rl"]), "step": 10},
        "late": {"path": str(third), "step": 20},
    }
    several = dlogp_ray.score(
        make_config(corpus=str(corpus), policies=policies, run_id="several"), progress=False
    )
    assert several.rows == 20
    counts = "SELECT policy, step, count(*) FROM scores GROUP BY ALL ORDER BY step"
    assert dlogp_ray.open_run(several.run).sql(counts).fetchall() == [
        ("early", 10, 10),
        ("late", 20, 10),
    ]
    pair = dlogp_ray.score(make_config(corpus=str(corpus), run_id="pair"), progress=False)
    early = [row for row in rows_of(several.run) if row["policy"] == "early"]
    for one, other in zip(early, rows_of(pair.run), strict=True):
        assert one["delta_logp"] == other["delta_logp"]

    alone = dlogp_ray.score(
        make_config(corpus=str(corpus), policies={"rl": str(policy_folders["rl"])}, run_id="alone"),
        progress=False,
    )
    for one, other in zip(rows_of(alone.run), rows_of(pair.run), strict=True):
        assert one["logp_rl"] == other["logp_rl"]
        assert one["logp_base"] is None
        assert one["delta_logp"] is None


def test_an_adapter_has_the_rows_of_its_merged_checkpoint(
    tmp_path: Path, make_config: Any, policy_folders: dict[str, Path]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = policy_folders["base"]
    adapter = make_adapter(tmp_path / "adapter", base)
    merged = Path(shutil.copytree(base, tmp_path / "merged"))
    model = AutoModelForCausalLM.from_pretrained(base)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(merged)
    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(20))
    rows = {}
    for name, rl in (("adapter", {"adapter": str(adapter)}), ("merged", {"path": str(merged)})):
        policies = {"base": str(base), "rl": rl | {"step": 3}}
        config = make_config(corpus=str(corpus), policies=policies, run_id=name)
        result = dlogp_ray.score(config, progress=False)
        assert (result.exit_code, result.sealed) == (0, True)
        rows[name] = rows_of(result.run)
    for one, other in zip(rows["adapter"], rows["merged"], strict=True):
        assert one["logp_base"] == other["logp_base"]
        np.testing.assert_allclose(one["delta_logp"], other["delta_logp"], atol=1e-5, rtol=0)
        assert one["rank_rl"] == other["rank_rl"]
        assert (one["step"], one["policy"]) == (3, "rl")
    assert np.abs(np.concatenate([row["delta_logp"] for row in rows["adapter"]])).mean() > 0.05


def test_every_bad_row_is_in_the_table_and_the_others_are_scored(
    tmp_path: Path, make_config: Any
) -> None:
    good = make_rows(3)
    ids = {"prompt_ids": [2, 3], "response_ids": [4, 5]}
    bad: dict[str, dict[str, Any] | str] = {
        "malformed": '{"sample_id": "m", ',
        "missing_column": {"sample_id": "a", "prompt_ids": [2]},
        "wrong_type": {"sample_id": "b", **ids, "response_ids": "45"},
        "empty_response": {"sample_id": "c", **ids, "response_ids": []},
        "id_outside_vocabulary": {"sample_id": "d", **ids, "response_ids": [4, 24]},
        "too_long": {"sample_id": "e", **ids, "response_ids": [4] * 63},  # the limit is 64
        "duplicate_sample_id": {**good[0]},
        "mask_length": {"sample_id": "f", **ids, "response_mask": [1]},
    }
    corpus = write_jsonl(tmp_path / "c.jsonl", [*good, *bad.values()])
    config = make_config(corpus=str(corpus), unit_tokens=100_000)
    result = dlogp_ray.score(config, progress=False)
    assert result.exit_code == 3
    assert result.sealed
    assert result.status == {"ok": 3} | dict.fromkeys(bad, 1)
    run = dlogp_ray.open_run(result.run)
    rejected = run.sql(
        "SELECT status, error, len(response_ids), len(delta_logp) FROM rejected"
    ).fetchall()
    assert {status for status, *_ in rejected} == set(bad)
    assert all(error and lengths == [0, 0] for _, error, *lengths in rejected)
    # The same run with room for as many rejections ends well.
    allowed = make_config(corpus=str(corpus), unit_tokens=100_000, max_rejected=len(bad) - 1)
    assert dlogp_ray.score(allowed, progress=False).exit_code == 3  # an id occurs twice
    assert dlogp_ray.score(config.model_copy(update={"max_rejected": 7}), progress=False).rows == 11


def test_max_rejected_is_what_may_be_rejected(tmp_path: Path, make_config: Any) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", [*make_rows(3), "not json", "nor this"])
    codes = {
        allowed: dlogp_ray.score(
            make_config(corpus=str(corpus), max_rejected=allowed), progress=False
        ).exit_code
        for allowed in (1, 2)
    }
    assert codes == {1: 3, 2: 0}


def test_ids_that_stand_in_two_units_are_in_the_manifest(tmp_path: Path, make_config: Any) -> None:
    rows = make_rows(6)
    write_jsonl(tmp_path / "c/1.jsonl", rows[:4])
    write_jsonl(tmp_path / "c/2.jsonl", rows[3:])  # s3 in both files
    result = dlogp_ray.score(
        make_config(corpus=str(tmp_path / "c"), unit_tokens=100_000), progress=False
    )
    assert (result.exit_code, result.duplicate_sample_ids, result.rows) == (3, 1, 7)
    manifest = dlogp_ray.open_run(result.run).manifest().to_pylist()
    assert [row["duplicate_sample_ids"] for row in manifest] == [["s3"], ["s3"]]
    again = dlogp_ray.score(
        make_config(corpus=str(tmp_path / "c"), unit_tokens=100_000), progress=False
    )
    assert again.exit_code == 3


def test_what_changes_numbers_is_refused_on_an_existing_run(
    tmp_path: Path, make_config: Any, policy_folders: dict[str, Path]
) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(5))
    dlogp_ray.score(make_config(corpus=str(corpus)), progress=False)
    for change, named in (
        ({"temperature": 0.7}, "temperature"),
        (
            {"policies": {"base": str(policy_folders["rl"]), "rl": str(policy_folders["rl"])}},
            "base",
        ),
        ({"carry": {"source": "string"}}, "carry"),
    ):
        with pytest.raises(FingerprintMismatch, match=named) as error:
            dlogp_ray.score(make_config(corpus=str(corpus), **change), progress=False)
        assert error.value.exit_code == 5
    with corpus.open("a") as file:
        file.write(json.dumps(make_rows(6)[-1]) + "\n")
    with pytest.raises(FingerprintMismatch, match="corpus"):
        dlogp_ray.score(make_config(corpus=str(corpus)), progress=False)


def test_a_policy_that_cannot_be_loaded_ends_the_job_before_anything_is_written(
    tmp_path: Path, make_config: Any, policy_folders: dict[str, Path]
) -> None:
    broken = make_policy_folder(tmp_path / "broken", seed=3)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(5))
    policies = {"base": str(policy_folders["base"]), "rl": str(broken)}
    with pytest.raises(Refused, match="can't be loaded"):
        dlogp_ray.score(make_config(corpus=str(corpus), policies=policies), progress=False)
    assert not (tmp_path / "runs").exists()


def test_resources_that_nobody_has_are_refused(tmp_path: Path, make_config: Any) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(5))
    with pytest.raises(Refused, match="GPUs"):
        dlogp_ray.score(make_config(corpus=str(corpus), gpus_per_actor=1), progress=False)


def test_a_unit_that_kills_its_process_is_the_only_one_missing(
    tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlogp_ray.pipelines import chain

    def poisoned() -> Any:
        from dlogp_ray.pipelines.actor import ScoreUnit

        class Poisoned(ScoreUnit):  # in a function, so that it travels to the workers by value
            def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
                if row["index"] == 1:
                    os._exit(1)
                return super().__call__(row)

        return Poisoned

    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(40))
    config = make_config(corpus=str(corpus), max_unit_attempts=2)
    with monkeypatch.context() as patch:
        patch.setattr(chain, "ScoreUnit", poisoned())
        result = dlogp_ray.score(config, progress=False)
    assert result.exit_code == 4
    assert not result.sealed
    assert list(result.units_failed) == ["part-00000001"]
    assert result.units_done == result.units - 1
    record = json.loads((Path(result.run) / "failed/part-00000001.json").read_text())
    assert record["attempts"] == 2

    mended = dlogp_ray.score(config, progress=False)
    assert (mended.exit_code, mended.units_scored, mended.sealed) == (0, 1, True)
    assert not list((Path(result.run) / "failed").iterdir())
    fresh = dlogp_ray.score(make_config(corpus=str(corpus), run_id="fresh"), progress=False)
    assert rows_of(mended.run) == rows_of(fresh.run)


def test_a_damaged_part_of_a_corpus_file_fails_its_unit_and_a_partial_run_can_be_sealed(
    tmp_path: Path, make_config: Any
) -> None:
    rows = pa.Table.from_pylist(make_rows(64))
    path = tmp_path / "c.parquet"
    pq.write_table(rows, path, row_group_size=16, write_page_checksum=True, use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 0xFF
    path.write_bytes(bytes(data))
    config = make_config(corpus=str(path))
    result = dlogp_ray.score(config, progress=False)
    assert result.exit_code == 4
    assert 0 < result.units_done < result.units
    assert all("reading" in cause for cause in result.units_failed.values())
    sealed = dlogp_ray.score(config.model_copy(update={"seal_partial": True}), progress=False)
    assert sealed.sealed
    assert sealed.exit_code == 4
    assert sealed.rows == result.rows


def test_damaged_objects_are_named_and_their_units_done_again_once_deleted(
    tmp_path: Path, make_config: Any
) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(40))
    config = make_config(corpus=str(corpus))
    run = Path(dlogp_ray.score(config, progress=False).run)
    undisturbed = rows_of(str(run))
    truncated, missing = run / "scores/part-00000001.parquet", run / "scores/part-00000000.parquet"
    truncated.write_bytes(truncated.read_bytes()[:3000])
    missing.unlink()
    with pytest.raises(Damaged, match="part-00000000 is missing; part-00000001 has 3000 bytes"):
        dlogp_ray.score(config, progress=False)
    with pytest.raises(Damaged):
        dlogp_ray.open_run(str(run)).sql("SELECT count(*) FROM scores")

    (run / "_SUCCESS").unlink()
    with pytest.raises(Damaged, match=r"part-00000001.parquet can't be read") as error:
        dlogp_ray.score(config, progress=False)  # does the missing one, and can't seal
    assert error.value.exit_code == 6
    truncated.unlink()
    mended = dlogp_ray.score(config, progress=False)
    assert (mended.exit_code, mended.units_scored, mended.sealed) == (0, 1, True)
    assert rows_of(str(run)) == undisturbed


def test_a_lost_list_of_units_is_made_again_only_as_it_was(
    tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlogp_ray.pipelines import planning

    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(40))
    run = dlogp_ray.open_run(dlogp_ray.score(make_config(corpus=str(corpus)), progress=False).run)
    listed = Path(run.path("units.parquet"))
    units = listed.read_bytes()
    listed.unlink()
    cut = planning.cut_units
    with monkeypatch.context() as patch:
        patch.setattr(planning, "cut_units", lambda files, n, columns: cut(files, n // 2, columns))
        with pytest.raises(Refused, match="cuts other units than the run has"):
            repair(run, verify(run), progress=False)
    assert run.sealed
    assert not listed.exists()
    repair(run, verify(run), progress=False)
    assert listed.read_bytes() == units
    assert verify(run) == []


def test_text_rows_go_through_the_tokenizer(tmp_path: Path, make_config: Any) -> None:
    corpus = write_jsonl(
        tmp_path / "c.jsonl",
        [
            {"id": "t", "q": "1+2=", "a": "3"},
            # The same as ids: a character's id is 2 + its place in 0123456789+=
            {"id": "i", "prompt_ids": [3, 12, 4, 13], "response_ids": [5, 1]},
        ],
    )
    config: ScoreConfig = make_config(
        corpus=str(corpus),
        columns={"sample_id": "id", "prompt": "q", "response": "a"},
        append_eos=True,
    )
    result = dlogp_ray.score(config, progress=False)
    text, ids = sorted(rows_of(result.run), key=lambda row: row["sample_id"], reverse=True)
    assert (text["from_text"], ids["from_text"]) == (True, False)
    assert text["token_hash"] == ids["token_hash"]
    assert text["delta_logp"] == ids["delta_logp"]
