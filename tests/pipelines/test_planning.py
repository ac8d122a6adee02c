"""Planning a score job: what is refused before any work, the limits, and the fingerprint."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import (
    CHARACTERS,
    make_adapter,
    make_policy_folder,
    make_rows,
    make_tokenizer,
    write_jsonl,
)

from dlogp_ray.config import CorpusEntry
from dlogp_ray.corpus.columns import check_columns
from dlogp_ray.corpus.sources import list_sources
from dlogp_ray.errors import ExitCode, InputChanged, Refused
from dlogp_ray.pipelines.score.plan import ScorePlan, plan_score


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "c.jsonl", make_rows(30))


@pytest.fixture
def copies(tmp_path: Path, policy_folders: dict[str, Path]) -> dict[str, Path]:
    """The two policies, in folders that a test may change."""
    return {n: Path(shutil.copytree(p, tmp_path / n)) for n, p in policy_folders.items()}


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(config: Any) -> str:
    with pytest.raises(Refused) as caught:
        plan_score(config)
    assert caught.value.exit_code == ExitCode.REFUSED == 2
    assert not Path(config.output).exists()  # nothing is written
    return str(caught.value)


def paths(folders: dict[str, Path]) -> dict[str, str]:
    return {name: str(folder) for name, folder in folders.items()}


def test_a_missing_corpus(make_config: Any, tmp_path: Path) -> None:
    text = refusal(make_config(corpus=str(tmp_path / "absent")))
    assert f"corpus {tmp_path}/absent: there is no JSONL or Parquet file there" in text


@pytest.mark.parametrize("field", ["corpus", "output"])
def test_a_store_that_is_not_known(make_config: Any, corpus: Path, field: str) -> None:
    config = make_config(**({"corpus": str(corpus)} | {field: "nosuchstore://x"}))
    text = refusal(config)
    assert text.startswith("nosuchstore://x: expected a path, or the URL of a store")


def test_a_first_file_that_is_no_parquet(make_config: Any, tmp_path: Path) -> None:
    (tmp_path / "c.parquet").write_bytes(b"not Parquet" * 10)
    for carry in ([], ["source"]):
        config = make_config(corpus=str(tmp_path / "c.parquet"), carry=carry)
        assert "c.parquet: not a readable Parquet file" in refusal(config)


def test_a_missing_checkpoint(make_config: Any, corpus: Path, tmp_path: Path) -> None:
    text = refusal(make_config(corpus=str(corpus), policies={"rl": str(tmp_path / "absent")}))
    assert f"policy rl ({tmp_path}/absent): there is no such folder" in text


def test_a_folder_that_is_no_checkpoint(make_config: Any, corpus: Path, tmp_path: Path) -> None:
    text = refusal(make_config(corpus=str(corpus), policies={"rl": str(tmp_path)}))
    assert "expected a folder in Hugging Face format, but there is no config.json" in text


def test_tokenizers_that_differ(make_config: Any, corpus: Path, copies: dict[str, Path]) -> None:
    # The same characters in another order: "0" (id 2) and "1" (id 3) change places.
    make_tokenizer("10" + CHARACTERS[2:]).save_pretrained(copies["rl"])
    text = refusal(make_config(corpus=str(corpus), policies=paths(copies)))
    assert "policies base and rl have different tokenizers" in text
    assert "token '0' is id 2 in base" in text
    assert "id 3 in rl" in text


def test_a_head_that_is_smaller_than_the_tokenizer(
    make_config: Any, corpus: Path, tmp_path: Path
) -> None:
    # 22 characters, a padding and an end-of-sequence token: ids 0 to 23.
    folder = make_policy_folder(tmp_path / "small", seed=0, vocab_size=23)
    text = refusal(make_config(corpus=str(corpus), policies={"rl": str(folder)}))
    assert "policy rl" in text
    assert "the lm head has 23 rows, and the tokenizer's ids go up to 23" in text


def test_a_checkpoint_without_a_tokenizer(
    make_config: Any, corpus: Path, copies: dict[str, Path]
) -> None:
    (copies["rl"] / "tokenizer.json").unlink()
    text = refusal(make_config(corpus=str(corpus), policies=paths(copies)))
    assert "policy rl" in text
    assert "no tokenizer in the folder" in text


def test_a_pickled_checkpoint_unless_allowed(
    make_config: Any, corpus: Path, copies: dict[str, Path]
) -> None:
    (copies["rl"] / "model.safetensors").rename(copies["rl"] / "pytorch_model.bin")
    config = make_config(corpus=str(corpus), policies=paths(copies))
    text = refusal(config)
    assert "policy rl" in text
    assert "pickled (pytorch_model.bin)" in text
    assert "safetensors, or set allow_pickle: true" in text
    assert plan_score(config.model_copy(update={"allow_pickle": True})).units


def test_a_checkpoint_with_code_of_its_own(
    make_config: Any, corpus: Path, copies: dict[str, Path]
) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling.Own"}
    edit_config(copies["rl"], model_type="its_own", auto_map=auto_map)
    text = refusal(make_config(corpus=str(corpus), policies=paths(copies)))
    assert "model_type 'its_own' needs Python code" in text
    assert "trust_remote_code: true" in text


def test_a_chat_prompt_without_a_template(
    make_config: Any, corpus: Path, copies: dict[str, Path]
) -> None:
    config = make_config(corpus=str(corpus), policies=paths(copies), prompt_format="chat")
    assert "prompt_format chat: the tokenizer has no chat template; use raw" in refusal(config)
    # Only the policy whose tokenizer is used needs one: rl, the last.
    (copies["rl"] / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert plan_score(config).units
    assert "no chat template" in refusal(config.model_copy(update={"tokenize_with": "base"}))


def test_limits_are_the_narrowest_policy_s(make_config: Any, corpus: Path, tmp_path: Path) -> None:
    # One has the shorter context and the other the smaller head (padded to 40 in the first).
    folders = {
        "base": make_policy_folder(
            tmp_path / "b", seed=0, vocab_size=40, max_position_embeddings=32
        ),
        "rl": make_policy_folder(tmp_path / "r", seed=1, vocab_size=24, max_position_embeddings=64),
    }
    rules = plan_score(make_config(corpus=str(corpus), policies=paths(folders))).job.rules
    assert (rules.vocab_size, rules.max_tokens) == (24, 32)


def test_the_plan_adds_up_its_units(make_config: Any, tmp_path: Path) -> None:
    rows = make_rows(50)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    plan = plan_score(make_config(corpus=str(tmp_path / "c.parquet")))
    tokens = sum(len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows)
    assert len(plan.units) == -(-tokens // 300) > 1  # make_config's unit_tokens
    # Each unit's share is rounded.
    assert plan.tokens == pytest.approx(tokens, abs=len(plan.units))
    assert plan.size_bytes == pytest.approx(
        (tmp_path / "c.parquet").stat().st_size, abs=len(plan.units)
    )


def test_carried_types_are_fixed_in_the_plan(make_config: Any, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", [row | {"year": 2026} for row in make_rows(3)])
    plan = plan_score(make_config(corpus=str(corpus), carry=["year"]))
    assert plan.job.rules.carry == plan.fingerprint["carry"] == {"year": "int64"}


@pytest.fixture
def fingerprint(make_config: Any, corpus: Path, copies: dict[str, Path]) -> Any:
    """The fingerprint of a job over ``corpus`` and ``copies`` with some fields replaced."""

    def make(**fields: Any) -> dict[str, Any]:
        defaults = {"corpus": str(corpus), "policies": paths(copies)}
        plan: ScorePlan = plan_score(make_config(**(defaults | fields)))
        return plan.fingerprint

    return make


@pytest.mark.parametrize(
    "fields",
    [
        {"actors": 7},
        {"token_budget": 64},
        {"max_rejected": 5},
        {"threads_per_actor": 2},
        {"gpus_per_actor": 1},
        {"max_unit_attempts": 1},
        {"seal_partial": True},
        {"tokenize_with": "rl"},  # the default, said aloud
        {"dtype": "float32"},  # what the checkpoints are saved in
        {},
    ],
    ids=str,
)
def test_what_changes_no_number_is_not_in_the_fingerprint(
    fingerprint: Any, fields: dict[str, Any]
) -> None:
    assert fingerprint(**fields) == fingerprint()


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"dtype": "bfloat16"}, "policies"),
        ({"columns": {"group_id": "sample_id"}}, "columns"),
        ({"carry": {"source": "string"}}, "carry"),
        ({"append_eos": True}, "append_eos"),
        ({"tokenize_with": "base"}, "tokenize_with"),
        ({"unit_tokens": 301}, "unit_tokens"),
    ],
    ids=str,
)
def test_what_changes_numbers_is_in_the_fingerprint(
    fingerprint: Any, fields: dict[str, Any], key: str
) -> None:
    before, after = fingerprint(), fingerprint(**fields)
    assert {name for name in before if before[name] != after[name]} == {key}


def test_a_step_and_a_policy_s_name_are_in_the_fingerprint(
    fingerprint: Any, copies: dict[str, Path]
) -> None:
    base, rl = paths(copies).values()
    before = fingerprint()
    assert fingerprint(policies={"base": base, "rl": {"path": rl, "step": 10}}) != before
    assert fingerprint(policies={"base": base, "late": rl}) != before
    assert fingerprint(policies={"base": base}) != before


def test_a_byte_of_the_corpus_changes_the_fingerprint(fingerprint: Any, corpus: Path) -> None:
    before = fingerprint()
    data = bytearray(corpus.read_bytes())
    data[-3] ^= 1
    corpus.write_bytes(bytes(data))  # as long as it was
    os.utime(corpus, ns=(0, corpus.stat().st_mtime_ns + 1_000_000))
    after = fingerprint()
    assert {name for name in before if before[name] != after[name]} == {"corpus"}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_byte_of_a_policy_changes_the_fingerprint(
    fingerprint: Any, copies: dict[str, Path], name: str
) -> None:
    before = fingerprint()
    path = copies["rl"] / name
    data = path.read_bytes()
    # The last byte of the weights is part of a number; a space after JSON changes nothing in it.
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if path.suffix != ".json" else data + b" ")
    after = fingerprint()
    assert after["policies"]["base"] == before["policies"]["base"]
    files = before["policies"]["rl"]["files"], after["policies"]["rl"]["files"]
    assert {key for key in files[0] if files[0][key] != files[1][key]} == {name}


def test_an_adapter_has_its_own_files_and_what_it_lacks_from_the_base(
    make_config: Any, corpus: Path, copies: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(corpus.parent / "lora", copies["base"])
    monkeypatch.chdir(corpus.parent)
    policies = {"base": "base", "rl": {"adapter": "lora", "step": 3}}
    config = make_config(corpus="c.jsonl", policies=policies)
    plan = plan_score(config)
    assert plan.job.config.policies["rl"].adapter == str(corpus.parent / "lora")
    assert plan.job.config.policies["rl"].path is None
    found = plan.fingerprint["policies"]
    assert found["rl"]["files"].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert (found["rl"]["step"], found["rl"]["dtype"]) == (3, "float32")
    assert (plan.job.rules.vocab_size, plan.job.rules.max_tokens) == (24, 64)
    assert plan.job.text_tokenizer().response("01").ids == [2, 3]
    # A byte of the adapter, and one of the base, is another run.
    for name, folder in (("rl", corpus.parent / "lora"), ("base", copies["base"])):
        (weights,) = folder.glob("*.safetensors")
        data = weights.read_bytes()
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        after = plan_score(config).fingerprint["policies"]
        assert {key for key in found if found[key] != after[key]} == {name}
        found = after
    # A tokenizer of its own is checked as any other.
    make_tokenizer("10" + CHARACTERS[2:]).save_pretrained(corpus.parent / "lora")
    assert "policies base and rl have different tokenizers" in refusal(config)


def test_a_tokenizer_that_has_changed_is_not_the_one_of_the_job_before(
    make_config: Any, corpus: Path, copies: dict[str, Path]
) -> None:
    job = plan_score(make_config(corpus=str(corpus), policies=paths(copies))).job
    assert job.text_tokenizer().response("01").ids == [2, 3]
    for folder in copies.values():
        make_tokenizer("10" + CHARACTERS[2:]).save_pretrained(folder)
    # As in a process that reads units of one run and then of another.
    with pytest.raises(InputChanged, match="tokenizer"):
        replace(job, run_uri="another").text_tokenizer()
    job = plan_score(job.config).job
    assert job.text_tokenizer().response("01").ids == [3, 2]


def test_what_a_row_may_take_is_in_the_fingerprint(fingerprint: Any) -> None:
    assert fingerprint() != fingerprint(max_row_bytes=1_000)


@pytest.mark.parametrize("append_eos", [False, True])
def test_what_ends_a_response_is_in_the_fingerprint_where_an_end_is_scored(
    fingerprint: Any, copies: dict[str, Path], append_eos: bool
) -> None:
    before = fingerprint(append_eos=append_eos)
    (copies["rl"] / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    after = fingerprint(append_eos=append_eos)
    assert after.get("end_tokens") == ([1, 7] if append_eos else None)
    assert (before != after) == append_eos


def test_a_policy_may_move_and_keep_its_fingerprint(
    fingerprint: Any, copies: dict[str, Path], tmp_path: Path
) -> None:
    before = fingerprint()
    copies["rl"].rename(tmp_path / "moved")
    assert fingerprint(policies=paths(copies | {"rl": tmp_path / "moved"})) == before


def test_the_fingerprint_is_json(fingerprint: Any) -> None:
    found = fingerprint()
    assert json.loads(json.dumps(found)) == found


def test_relative_paths_become_absolute(
    make_config: Any, corpus: Path, copies: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = corpus.parent
    monkeypatch.chdir(here)
    relative = make_config(corpus="c.jsonl", policies={n: n for n in copies}, output="runs")
    config = plan_score(relative).job.config
    assert [entry.path for entry in config.corpus] == [str(here / "c.jsonl")]
    assert config.output == str(here / "runs")
    assert {name: source.path for name, source in config.policies.items()} == paths(copies)
    # And the job is the same one as with absolute paths.
    absolute = make_config(corpus=str(corpus), policies=paths(copies))
    assert plan_score(absolute).fingerprint == plan_score(relative).fingerprint


def test_addresses_in_a_store_stay(make_config: Any, corpus: Path, bucket: str) -> None:
    config = make_config(corpus=str(corpus), output=f"{bucket}/runs")
    assert plan_score(config).job.run_uri == f"{bucket}/runs/test"


def test_a_relative_output_in_a_submitted_job_is_refused(
    make_config: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    text = refusal(make_config(corpus=str(corpus), output="runs"))
    assert text.startswith("output runs: in a submitted job the current folder is a temporary copy")
    assert "absolute path or a URL" in text
    outside = make_config(corpus=str(corpus), output=str(tmp_path / "runs"))
    assert plan_score(outside).job.run_uri == f"{tmp_path}/runs/test"


@pytest.mark.parametrize("blocked", ["a file", "a folder that cannot be made"])
def test_an_output_that_cannot_be_written(
    make_config: Any, corpus: Path, tmp_path: Path, blocked: str
) -> None:
    output = corpus if blocked == "a file" else Path("/proc/dlogp-ray")
    with pytest.raises(Refused, match="nothing can be written there"):
        plan_score(make_config(corpus=str(corpus), output=str(output)))
    # Where it can, looking leaves nothing behind.
    plan_score(make_config(corpus=str(corpus), output=str(tmp_path / "new/deeper")))
    assert not (tmp_path / "new").exists()


def test_policies_of_the_same_files_are_told(
    make_config: Any, copies: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = str(write_jsonl(tmp_path / "c.jsonl", make_rows(3)))
    base, rl = paths(copies).values()
    plan_score(make_config(corpus=corpus, policies={"base": base, "rl": rl}))
    assert "same files" not in capsys.readouterr().err
    plan_score(make_config(corpus=corpus, policies={"base": base, "rl": base}))
    assert "policies base and rl have the same files: every Δlog p" in capsys.readouterr().err


def test_a_corpus_without_a_fit_row_is_refused_with_its_reasons(
    make_config: Any, tmp_path: Path
) -> None:
    """Seven of 200 rows too long, the others out of the vocabulary: more than are read at once."""
    rows = [row | {"response_ids": [99]} for row in make_rows(200)]
    for row in rows[:7]:
        row["response_ids"] = [4] * 65
    corpus = write_jsonl(tmp_path / "c.jsonl", rows)
    text = refusal(make_config(corpus=str(corpus), unit_tokens=100_000))
    assert "no row is fit to be scored, of 200 rows. Correct them" in text
    assert "  7 too_long: " in text
    assert "  193 id_outside_vocabulary: " in text
    assert "c.jsonl, line 8 (byte " in text


def test_one_fit_row_anywhere_is_enough(make_config: Any, tmp_path: Path) -> None:
    rows = [row | {"response_ids": [99]} for row in make_rows(200)]
    rows[150]["response_ids"] = [4]
    corpus = write_jsonl(tmp_path / "c.jsonl", rows)
    assert len(plan_score(make_config(corpus=str(corpus), unit_tokens=100_000)).units) == 1


def test_rejections_that_are_allowed_are_no_reason(make_config: Any, tmp_path: Path) -> None:
    rows = [row | {"response_ids": [99]} for row in make_rows(5)]
    corpus = str(write_jsonl(tmp_path / "c.jsonl", rows))
    plan_score(make_config(corpus=corpus, max_rejected=5))
    with pytest.raises(Refused, match="of 5 rows"):
        plan_score(make_config(corpus=corpus, max_rejected=4, output=str(tmp_path / "other")))


def planned(make_config: Any, path: Path, **fields: Any) -> Any:
    return plan_score(make_config(corpus=str(path), **fields))


def test_a_condition_that_names_no_column_or_chooses_nothing_is_refused(
    make_config: Any, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [row | {"step": 3} for row in make_rows(20)])
    files, maps = list_sources([CorpusEntry(path=str(path), where="stp > 1")])
    with pytest.raises(Refused, match=r"there is no column 'stp'; the first rows have .*step"):
        check_columns(files, maps)
    with pytest.raises(Refused, match="where and sample choose no row, of 1 of 1 units"):
        planned(make_config, path, where="step > 3", unit_tokens=100_000)
    assert planned(make_config, path, where="step = 3 AND len(response_ids) > 0").units


def test_what_is_chosen_is_part_of_what_a_run_is_made_from(
    make_config: Any, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [row | {"step": 3} for row in make_rows(20)])
    prints = [
        json.dumps(planned(make_config, path, **fields).fingerprint, sort_keys=True)
        for fields in ({}, {"where": "step = 3"}, {"where": "step > 2"}, {"sample": 0.9})
    ]
    assert len(set(prints)) == 4
