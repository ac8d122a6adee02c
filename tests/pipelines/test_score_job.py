"""The score job through Ray: right values, one object a unit, resume, isolation of failures."""

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import (
    make_adapter,
    make_framing_tokenizer,
    make_policy_folder,
    make_rows,
    write_jsonl,
)
from rich.console import Console

import dlogp_ray
from dlogp_ray.analysis.overview import overview, print_overview
from dlogp_ray.config import ScoreConfig
from dlogp_ray.errors import Damaged, FingerprintMismatch, Refused
from dlogp_ray.pipelines.repair import repair
from dlogp_ray.pipelines.score import probe as probing
from dlogp_ray.pipelines.score.result import print_score
from dlogp_ray.tables.noise import Rounding
from dlogp_ray.tables.verification import verify


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
    finished: Any, policy_folders: dict[str, Path]
) -> None:
    rows, result = make_rows(40), finished.result
    assert result.exit_code == 0
    assert result.sealed
    assert result.units == result.units_done == result.units_scored > 2
    assert result.rows == 40
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


def test_a_finished_run_scores_nothing_more_and_says_the_same(finished: Any) -> None:
    first = finished.result
    objects = {p: p.stat().st_mtime_ns for p in Path(first.run).rglob("*") if p.is_file()}
    config = ScoreConfig.from_mapping(
        finished.config.model_dump(mode="json") | {"actors": 2, "run_on": "ray"}
    )
    second = dlogp_ray.score(config, progress=False)
    assert (second.run, second.units_scored) == (first.run, 0)
    assert (second.rows, second.tokens, second.status) == (first.rows, first.tokens, first.status)
    assert objects == {p: p.stat().st_mtime_ns for p in Path(first.run).rglob("*") if p.is_file()}


def test_the_noise_floor_is_measured_once_and_found_everywhere(
    tmp_path: Path, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlogp_ray.pipelines.score import plan as planning

    rows, first = make_rows(40), finished.result
    noise = first.noise
    assert noise is not None
    # So small a corpus is its own sample.
    assert (noise.texts, noise.tokens) == (40, sum(len(row["response_ids"]) for row in rows))
    assert set(noise.rebatched) == {"rl"}
    # Two layers in float32: a few roundings of 2^-24 of logits of about 10.
    assert noise.unresolved_nats is not None
    assert 0 < noise.unresolved_nats < 1e-5
    assert noise.rounding == Rounding()  # all is float32
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
    print_score(first, console)
    print_overview(overview(dlogp_ray.open_run(first.run)), console)
    assert printed.getvalue().count(noise.as_row()[1]) == 2

    # As a run looks that was cut off after some of its units.
    config = finished.copy(tmp_path)
    for name in ("_SUCCESS", "manifest.parquet", "scores/part-00000001.parquet"):
        (Path(config.run_uri) / name).unlink()
    monkeypatch.setattr(planning, "sample_units", lambda units: pytest.fail("measured again"))
    resumed = dlogp_ray.score(config, progress=False)
    assert resumed.units_scored == 1
    assert places(resumed) == [record] * 6
    assert places(dlogp_ray.score(config, progress=False)) == [record] * 6


def test_the_noise_floor_of_half_precision_has_its_rounding_in_it(
    tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "ROUNDING_S", 1e6)  # on a busy machine too
    rows = make_rows(20)
    config = make_config(corpus=str(write_jsonl(tmp_path / "c.jsonl", rows)), dtype="bfloat16")
    noise = dlogp_ray.score(config, progress=False).noise
    assert noise is not None
    assert noise.rounding is not None
    assert (noise.rounding.texts, noise.rounding.tokens) == (noise.texts, noise.tokens)
    assert noise.unresolved_nats is not None
    # A few roundings of 2^-9 of hidden states of which logits of about 2 are made.
    assert 1e-3 < noise.rounding.spreads["rl"]["delta_logp"].p99 <= noise.unresolved_nats < 1
    assert dlogp_ray.open_run(config.run_uri).noise == noise


def test_only_missing_units_are_done_and_they_are_the_run_s_own(
    tmp_path: Path, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlogp_ray.pipelines.score import plan as planning

    config = finished.copy(tmp_path)
    run = Path(config.run_uri)
    # As a run looks that was cut off after some of its units.
    for name in ("_SUCCESS", "manifest.parquet", "scores/part-00000001.parquet"):
        (run / name).unlink()
    kept = {p.name: p.stat().st_mtime_ns for p in (run / "scores").iterdir()}
    assert not dlogp_ray.open_run(config.run_uri).sealed
    cut = planning.cut_units
    # As a later version may do: twice as many units of the same corpus.
    monkeypatch.setattr(planning, "cut_units", lambda files, n, *more: cut(files, n // 2, *more))
    again = dlogp_ray.score(config, progress=False)
    assert (again.units, again.units_scored) == (finished.result.units, 1)
    assert again.sealed
    now = {p.name: p.stat().st_mtime_ns for p in (run / "scores").iterdir()}
    assert {name: now[name] for name in kept} == kept
    assert rows_of(again.run) == rows_of(finished.result.run)


def test_several_policies_one_row_each_and_one_policy_alone(
    tmp_path: Path, make_config: Any, finished: Any, policy_folders: dict[str, Path]
) -> None:
    (corpus,) = finished.config.corpus
    third = make_policy_folder(tmp_path / "third", seed=2)
    policies = {
        "base": str(policy_folders["base"]),
        "early": {"path": str(policy_folders["rl"]), "step": 10},
        "late": {"path": str(third), "step": 20},
        "copy": str(shutil.copytree(policy_folders["base"], tmp_path / "copy")),
    }
    several = dlogp_ray.score(
        make_config(corpus=corpus, policies=policies, run_id="several"), progress=False
    )
    assert several.rows == 120
    run = dlogp_ray.open_run(several.run)
    counts = "SELECT policy, step, count(*) FROM scores GROUP BY ALL ORDER BY step"
    assert run.sql(counts).fetchall() == [("early", 10, 40), ("late", 20, 40), ("copy", None, 40)]
    # A copy of the base differs from it by nothing, exactly.
    largest = "max(abs(delta_logp)), max(kl_rl_base), max(kl_base_rl), max(js)"
    same = f"SELECT {largest}, bool_and(top1_agree) FROM tokens WHERE policy = 'copy'"
    assert run.sql(same).fetchall() == [(0.0, 0.0, 0.0, 0.0, True)]
    pair = rows_of(finished.result.run)
    early = [row for row in rows_of(several.run) if row["policy"] == "early"]
    for one, other in zip(early, pair, strict=True):
        assert one["delta_logp"] == other["delta_logp"]

    alone = dlogp_ray.score(
        make_config(corpus=corpus, policies={"rl": str(policy_folders["rl"])}, run_id="alone"),
        progress=False,
    )
    for one, other in zip(rows_of(alone.run), pair, strict=True):
        assert one["logp_rl"] == other["logp_rl"]
        assert one["logp_base"] is None
        assert one["delta_logp"] is None


@pytest.mark.slow
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
    policies = {
        "base": str(base),
        "adapter": {"adapter": str(adapter), "step": 3},
        "merged": {"path": str(merged)},
    }
    result = dlogp_ray.score(make_config(corpus=str(corpus), policies=policies), progress=False)
    assert (result.exit_code, result.sealed) == (0, True)
    rows = rows_of(result.run)
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["sample_id"] == other["sample_id"]
        assert (one["policy"], other["policy"]) == ("adapter", "merged")
        assert (one["step"], other["step"]) == (3, None)
        assert one["logp_base"] == other["logp_base"]
        np.testing.assert_allclose(one["delta_logp"], other["delta_logp"], atol=1e-5, rtol=0)
        assert one["rank_rl"] == other["rank_rl"]
    assert np.abs(np.concatenate([row["delta_logp"] for row in rows])).mean() > 0.05


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
        "mask_length": {"sample_id": "f", **ids, "response_mask": [1]},
    }
    corpus = write_jsonl(tmp_path / "c.jsonl", [*good, *bad.values()])
    config = make_config(corpus=str(corpus), unit_tokens=100_000)
    result = dlogp_ray.score(config, progress=False)
    assert result.exit_code == 3
    assert result.sealed
    assert result.status == {"ok": 3} | dict.fromkeys(bad, 1)
    assert result.rows == 3 + len(bad)
    run = dlogp_ray.open_run(result.run)
    rejected = run.sql(
        "SELECT status, error, len(response_ids), len(delta_logp) FROM rejected"
    ).fetchall()
    assert {status for status, *_ in rejected} == set(bad)
    assert all(error and lengths == [0, 0] for _, error, *lengths in rejected)
    # The same run where as many may be rejected, and one less.
    for allowed, code in ((len(bad), 0), (len(bad) - 1, 3)):
        asked = config.model_copy(update={"max_rejected": allowed})
        assert dlogp_ray.score(asked, progress=False).exit_code == code


def test_ids_that_occur_twice_are_rejected_in_a_unit_and_are_in_the_manifest_across_units(
    tmp_path: Path, make_config: Any
) -> None:
    rows = make_rows(6)
    write_jsonl(tmp_path / "c/1.jsonl", [*rows[:4], rows[0]])
    write_jsonl(tmp_path / "c/2.jsonl", rows[3:])  # s3 in both files
    config = make_config(corpus=str(tmp_path / "c"), unit_tokens=100_000)
    result = dlogp_ray.score(config, progress=False)
    assert (result.exit_code, result.duplicate_sample_ids, result.rows) == (3, 1, 8)
    assert result.status == {"ok": 7, "duplicate_sample_id": 1}
    manifest = dlogp_ray.open_run(result.run).manifest().to_pylist()
    assert [row["duplicate_sample_ids"] for row in manifest] == [["s3"], ["s3"]]
    # That nobody counts rejections does not make it good.
    asked = config.model_copy(update={"max_rejected": 100})
    assert dlogp_ray.score(asked, progress=False).exit_code == 3


def test_what_changes_numbers_is_refused_on_an_existing_run(
    tmp_path: Path, finished: Any, policy_folders: dict[str, Path]
) -> None:
    config = finished.copy(tmp_path)
    fields = config.model_dump(mode="json")
    for change, named in (
        ({"temperature": 0.7}, "temperature"),
        (
            {"policies": {"base": str(policy_folders["rl"]), "rl": str(policy_folders["rl"])}},
            "base",
        ),
        ({"carry": {"source": "string"}}, "carry"),
    ):
        with pytest.raises(FingerprintMismatch, match=named) as error:
            dlogp_ray.score(ScoreConfig.from_mapping(fields | change), progress=False)
        assert error.value.exit_code == 5
    file = Path(config.corpus[0].path) / "a.jsonl"
    rows, times = file.read_bytes(), file.stat()
    with file.open("a") as more:
        more.write(json.dumps(make_rows(41)[-1]) + "\n")
    try:
        with pytest.raises(FingerprintMismatch, match="corpus"):
            dlogp_ray.score(config, progress=False)
    finally:
        file.write_bytes(rows)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


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
    config = make_config(corpus=str(path), seal_partial=True)
    result = dlogp_ray.score(config, progress=False)
    assert (result.exit_code, result.sealed) == (4, True)
    assert 0 < result.units_done < result.units
    assert all("reading" in cause for cause in result.units_failed.values())
    assert 0 < result.rows < 64


def test_damaged_objects_are_named_and_their_units_done_again_once_deleted(
    tmp_path: Path, finished: Any
) -> None:
    config = finished.copy(tmp_path)
    run = Path(config.run_uri)
    truncated, missing = run / "scores/part-00000001.parquet", run / "scores/part-00000000.parquet"
    truncated.write_bytes(truncated.read_bytes()[:3000])
    missing.unlink()
    with pytest.raises(Damaged, match="part-00000000 is missing; part-00000001 has 3000 bytes"):
        dlogp_ray.score(config, progress=False)
    with pytest.raises(Damaged):
        dlogp_ray.open_run(str(run)).sql("SELECT count(*) FROM scores")

    (run / "_SUCCESS").unlink()
    with pytest.raises(Damaged, match=r"part-00000001.parquet can't be read") as error:
        dlogp_ray.score(config, progress=False)
    assert error.value.exit_code == 6
    truncated.unlink()
    mended = dlogp_ray.score(config, progress=False)
    assert (mended.exit_code, mended.units_scored, mended.sealed) == (0, 2, True)
    assert rows_of(str(run)) == rows_of(finished.result.run)


def test_a_lost_list_of_units_is_made_again_only_as_it_was(
    tmp_path: Path, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlogp_ray.pipelines.score import plan as planning

    run = dlogp_ray.open_run(finished.copy(tmp_path).run_uri)
    listed = Path(run.path("units.parquet"))
    units = listed.read_bytes()
    listed.unlink()
    cut = planning.cut_units
    with monkeypatch.context() as patch:
        patch.setattr(planning, "cut_units", lambda files, n, *more: cut(files, n // 2, *more))
        with pytest.raises(Refused, match="makes another one than the run has"):
            repair(run, verify(run), progress=False)
    assert run.sealed
    assert not listed.exists()
    repair(run, verify(run), progress=False)
    assert listed.read_bytes() == units
    assert verify(run) == []


def test_text_rows_are_scored_as_the_ids_that_they_stand_for(
    tmp_path: Path, make_config: Any
) -> None:
    """Without a second beginning, or an end before the response, and with one end after it."""
    tokenizer = make_framing_tokenizer()  # begins with 0 and ends with 1
    folders = {
        name: make_policy_folder(tmp_path / name, seed, tokenizer=tokenizer)
        for seed, name in enumerate(("base", "rl"))
    }
    for folder in folders.values():
        (folder / "generation_config.json").write_text('{"eos_token_id": [1, 14]}')
    # The same as ids: a character's id is 2 + its place in 0123456789+=a
    ids = {"prompt_ids": [0, 3, 12, 4, 13], "response_ids": [5, 1]}
    corpus = write_jsonl(
        tmp_path / "c.jsonl",
        [
            {"id": "ids"} | ids,
            {"id": "bare", "q": "1+2=", "a": "3"},
            {"id": "rendered", "q": "<pad>1+2=", "a": "3<eos>"},
            {"id": "ended otherwise", "q": "1+2=", "a": "3a"},
            {"id": "begun twice", "q": "<pad><pad>1+2=", "a": "3"},
        ],
    )
    config: ScoreConfig = make_config(
        corpus=str(corpus),
        columns={"sample_id": "id", "prompt": "q", "response": "a"},
        policies={name: str(folder) for name, folder in folders.items()},
        append_eos=True,
        max_rejected=1,
    )
    result = dlogp_ray.score(config, progress=False)
    assert result.exit_code == 0
    rows = {row["sample_id"]: row for row in rows_of(result.run)}
    assert {name: row["from_text"] for name, row in rows.items()} == {
        "ids": False,
        "bare": True,
        "rendered": True,
        "ended otherwise": True,
        "begun twice": False,
    }
    for name in ("bare", "rendered"):
        for column in ("prompt_len", "prompt_hash", "token_hash", "delta_logp"):
            assert rows[name][column] == rows["ids"][column]
    assert rows["ended otherwise"]["response_ids"] == [5, 14]
    assert rows["begun twice"]["status"] == "two_bos"

    # Of the corpus's three rows of text that are scored; one has its beginning, two their end.
    counts = {"end_left_off": 3, "bos_there": 1, "eos_there": 2}
    run = dlogp_ray.open_run(result.run)
    assert result.as_json()["special_tokens"] == counts
    assert overview(run).as_json()["summary"]["special_tokens"] == counts
    assert json.loads((Path(result.run) / "_SUCCESS").read_text())["special_tokens"] == counts
    assert verify(run) == []
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    print_score(result, console)
    print_overview(overview(run), console)
    for line in (
        "3 whose prompt is without the end that the tokenizer appends to a text",
        "1 whose prompt begins with what the tokenizer puts in front: it was not added again",
        "2 whose response ends already: append_eos added nothing",
    ):
        assert printed.getvalue().count(line) == 2


def test_where_torch_gave_up_compiling_the_job_says_so_at_its_end(finished: Any) -> None:
    result = finished.result
    assert result.as_json()["units_uncompiled"] == 0
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    print_score(result, console)
    assert "uncompiled" not in printed.getvalue()
    print_score(replace(result, units_uncompiled=2), console)
    assert "uncompiled       2 units, in part: torch.compile gave up there" in printed.getvalue()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")  # what torch has given up, it has in this process for good
def test_units_that_torch_gave_up_on_are_counted(
    finished: Any, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlogp_ray.pipelines.score import plan as planning
    from dlogp_ray.pipelines.score.actor import ScoreUnit

    class NoRoom(ScoreUnit):  # here, so that it goes to the workers with its code
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            from dlogp_ray.policies import compiling

            compiling.FORMS = 0  # torch gives up at once, on whatever it is to compile
            super().__init__(*args, **kwargs)

    stages = replace(planning.ScorePlan.stages, actor=NoRoom)
    monkeypatch.setattr(planning.ScorePlan, "stages", stages)
    corpus = finished.config.corpus[0].path
    config = make_config(corpus=corpus, compile="on", run_on="ray")
    result = dlogp_ray.score(config, progress=False)
    assert (result.exit_code, result.units_uncompiled) == (0, result.units)
    # What ran uncompiled is what runs without compiling.
    for found, plain in zip(rows_of(result.run), rows_of(finished.result.run), strict=True):
        np.testing.assert_allclose(found["delta_logp"], plain["delta_logp"], atol=1e-5, rtol=0)


def test_rollouts_of_each_policy_in_files_of_their_own_are_the_plain_corpus(
    tmp_path: Path, make_config: Any
) -> None:
    """The same texts, nested, without ids and generators: the same scores, bit for bit."""
    plain = [row | {"generator": "base" if i % 2 else "rl"} for i, row in enumerate(make_rows(12))]
    kept = ("prompt_ids", "response_ids", "generator")
    for name in ("base", "rl"):
        records = [
            {"ids": [*row["prompt_ids"], *row["response_ids"]], "n": len(row["response_ids"])}
            for row in plain
            if row["generator"] == name
        ]
        write_jsonl(tmp_path / f"{name}/r.jsonl", [{"data": record} for record in records])
    rows = [{"sample_id": f"s{i}"} | {n: row[n] for n in kept} for i, row in enumerate(plain)]
    entries = [
        {"path": str(tmp_path / name), "constants": {"generator": name}} for name in ("base", "rl")
    ]
    split = {"ids": "data.ids", "response_length": "data.n"}
    configs = {
        "plain": make_config(corpus=str(write_jsonl(tmp_path / "p.jsonl", rows)), run_id="plain"),
        "own": make_config(corpus=entries, run_id="own", sample_id="auto", split=split),
    }
    deltas, ids = {}, {}
    for name, config in configs.items():
        result = dlogp_ray.score(config, progress=False)
        assert (result.exit_code, result.rows) == (0, 12)
        table = dlogp_ray.open_run(result.run).dataset().to_table().to_pylist()
        key = ("generator", "prompt_hash", "response_ids")
        deltas[name] = {str([row[n] for n in key]): row["delta_logp"] for row in table}
        ids[name] = [row["sample_id"] for row in table]
    assert deltas["own"] == deltas["plain"]
    assert {name.partition(":")[0] for name in ids["own"]} == {"base/r.jsonl", "rl/r.jsonl"}
    assert len(set(ids["own"])) == 12
    # The same command again is the same run, and other constants are another one.
    assert dlogp_ray.score(configs["own"], progress=False).units_created == 0
    changed = configs["own"].model_dump(mode="json")
    changed["corpus"][0]["constants"] = {"generator": "sft"}
    with pytest.raises(FingerprintMismatch, match="entries"):
        dlogp_ray.score(ScoreConfig.from_mapping(changed), progress=False)
