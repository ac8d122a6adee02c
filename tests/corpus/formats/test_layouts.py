"""Each format's layout, written by hand as its program writes it, gives a plain corpus's rows."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import write_jsonl

from dlogp_ray.config import CorpusEntry
from dlogp_ray.config.corpus import FormatName
from dlogp_ray.corpus.columns import check_columns
from dlogp_ray.corpus.cutting import cut_units
from dlogp_ray.corpus.formats import FORMATS, format_like
from dlogp_ray.corpus.mapping import RowMap
from dlogp_ray.corpus.reading import read_torch
from dlogp_ray.corpus.sources import list_sources
from dlogp_ray.errors import Refused, RowRejected


@dataclass(frozen=True)
class Text:
    """An answer, with everything that a layout may say of it; a tool's tokens are masked."""

    group: str
    number: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    mask: tuple[int, ...]
    logps: tuple[float, ...]
    reward: float
    prompt: str
    response: str


TEXTS = (
    Text("7", 0, (1, 2, 3), (4, 5, 6), (1, 1, 1), (-0.5, -1.0, -0.25), 1.0, "1+1=", "2"),
    Text("7", 1, (1, 2, 3), (4, 9, 8, 6), (1, 0, 0, 1), (-2.0, 0.0, 0.0, -1.5), 0.0, "1+1=", "3"),
    Text("8", 0, (1, 7), (4,), (1,), (-0.125,), 0.5, "5=", "five"),
)
"""Two answers to one problem, the second with a tool's tokens, and one to another."""


def nemo_rl(text: Text) -> dict[str, Any]:
    ids = [*text.prompt_ids, *text.response_ids]
    before, padding = [0] * len(text.prompt_ids), [0, 0]
    return {
        "content": ["rendered"],
        "rewards": [9.0],
        "filtered_rewards": [text.reward],
        "input_lengths": [len(ids)],
        "token_ids": [[*ids, *padding]],
        "token_loss_mask": [[*before, *text.mask, *padding]],
        "generation_logprobs": [[*before, *text.logps, *padding]],
        "idx": 3,
    }


def open_instruct(text: Text) -> dict[str, Any]:
    return {
        "step": 12,
        "sample_idx": text.number,
        "prompt_idx": text.group,
        "prompt_tokens": list(text.prompt_ids),
        "response_tokens": list(text.response_ids),
        "logprobs": list(text.logps),
        "reward": text.reward,
        "advantage": 0.1,
        "finish_reason": "stop",
    }


def prime_rl(text: Text) -> dict[str, Any]:
    """A node for the prompt, and one for each stretch of generated or given tokens."""
    nodes: list[dict[str, Any]] = [
        {"parent": None, "sampled": False, "token_ids": list(text.prompt_ids), "mask": []}
    ]
    nodes[0]["mask"] = [False] * len(text.prompt_ids)
    for token, kept, logp in zip(text.response_ids, text.mask, text.logps, strict=True):
        nodes.append(
            {
                "parent": len(nodes) - 1,
                "sampled": bool(kept),
                "token_ids": [token],
                "mask": [bool(kept)],
                "logprobs": [logp] if kept else [],
            }
        )
    trace = {
        "id": f"t{text.group}-{text.number}",
        "nodes": nodes,
        "rewards": {
            "right": {"score": text.reward, "weight": 1.0},
            "format": {"score": 1.0, "weight": 0.0},
        },
        "calls": [{"sampling": {"temperature": 0.7, "top_p": 0.9}}],
    }
    return {"id": "e", "group": {"id": text.group}, "ok": True, "traces": [trace]}


def prime_rl_tokens(text: Text) -> dict[str, Any]:
    before = [0] * len(text.prompt_ids)
    return {
        "token_ids": [*text.prompt_ids, *text.response_ids],
        "loss_mask": [*before, *text.mask],
        "inference_logprobs": [*before, *text.logps],
        "step": 4,
        "rank": 1,
        "export_sequence_idx": text.number,
    }


def openai_batch(text: Text) -> dict[str, Any]:
    choice = {
        "index": text.number,
        "message": {"role": "assistant", "content": text.response},
        "token_ids": list(text.response_ids),
        "logprobs": {"content": [{"token": "x", "logprob": logp} for logp in text.logps]},
    }
    body = {"choices": [choice], "prompt_token_ids": list(text.prompt_ids)}
    return {"custom_id": text.group, "response": {"status_code": 200, "body": body}, "error": None}


def slime(text: Text) -> dict[str, Any]:
    return {
        "rollout_id": 6,
        "tokens": [*text.prompt_ids, *text.response_ids],
        "response_length": len(text.response_ids),
        "loss_mask": list(text.mask),
        "rollout_log_probs": list(text.logps),
        "reward": {"score": text.reward, "format": 1.0},
        "index": text.number,
        "group_index": int(text.group),
        "status": "completed",
        "prompt": text.prompt,
        "response": text.response,
    }


def skyrl(text: Text) -> dict[str, Any]:
    return {
        "input_prompt": text.prompt,
        "output_response": text.response,
        "score": [0.0, text.reward],
        "stop_reason": "stop",
        "env_class": "gsm8k",
    }


def areal(text: Text) -> dict[str, Any]:
    return {
        "task_id": text.group,
        "sample_idx": text.number,
        "seqlen": len(text.prompt) + len(text.response),
        "prompt_len": len(text.prompt),
        "reward": text.reward,
        "prompt": text.prompt,
        "completion": text.response,
    }


def roll(text: Text) -> dict[str, Any]:
    return {
        "global_step": 5,
        "id": [text.group],
        "prompt": ["user\n1+1=\nassistant\n"],
        "messages": [json.dumps([{"role": "user", "content": text.prompt}])],
        "responses": [text.response],
        "scores": [text.reward],
        "sampling_params": {"temperature": 0.7, "top_p": 0.9},
    }


def ms_swift(text: Text) -> dict[str, Any]:
    return {
        "step": [3],
        "prompt": [text.prompt],
        "completion": [text.response],
        "rewards": {"accuracy": [text.reward]},
    }


def lm_eval(text: Text) -> dict[str, Any]:
    return {
        "doc_id": text.group,
        "doc": {"question": text.prompt},
        "arguments": {"gen_args_0": {"arg_0": text.prompt, "arg_1": {"temperature": 0.7}}},
        "resps": [[text.response]],
        "filtered_resps": [text.response],
        "filter": "none",
        "metrics": ["exact_match"],
        "exact_match": text.reward,
    }


def lighteval(text: Text) -> dict[str, Any]:
    return {
        "doc": {"query": text.prompt, "id": text.group},
        "model_response": {
            "input_tokens": list(text.prompt_ids),
            "text": [text.response],
            "output_tokens": [list(text.response_ids)],
        },
        "metric": {"extractive_match": text.reward},
    }


def verl(text: Text) -> dict[str, Any]:
    return {
        "input": text.prompt,
        "output": text.response,
        "gts": "2",
        "score": text.reward,
        "step": 5,
        "uid": f"{text.group}_0_{text.number}",
    }


def trl(text: Text) -> dict[str, Any]:
    return {
        "step": 5,
        "prompt": text.prompt,
        "completion": text.response,
        "accuracy": text.reward,
        "advantage": 0.3,
    }


def synthetic_1(text: Text) -> dict[str, Any]:
    return {
        "response_id": f"{text.group}-{text.number}",
        "problem_id": text.group,
        "prompt": text.prompt,
        "llm_response": text.response,
        "score": text.reward,
    }


def openr1(text: Text) -> dict[str, Any]:
    return {
        "uuid": text.group,
        "problem": text.prompt,
        "generations": [text.response],
        "correctness_math_verify": [text.reward == 1.0],
    }


def deepmath(text: Text) -> dict[str, Any]:
    solutions = {f"r1_solution_{n}": text.response for n in (1, 2, 3)}
    return {"question": text.prompt, "final_answer": "2"} | solutions


def openthoughts(text: Text) -> dict[str, Any]:
    turns = [{"from": "human", "value": text.prompt}, {"from": "gpt", "value": text.response}]
    return {"conversations": turns}


WITH_IDS: dict[FormatName, Callable[[Text], dict[str, Any]]] = {
    "nemo_rl": nemo_rl,
    "open_instruct": open_instruct,
    "openai_batch": openai_batch,
    "prime_rl": prime_rl,
    "prime_rl_tokens": prime_rl_tokens,
    "slime": slime,
    "lighteval": lighteval,
}
WITH_TEXT: dict[FormatName, Callable[[Text], dict[str, Any]]] = {
    "areal": areal,
    "deepmath": deepmath,
    "lm_eval": lm_eval,
    "ms_swift": ms_swift,
    "openr1": openr1,
    "openthoughts": openthoughts,
    "roll": roll,
    "skyrl": skyrl,
    "synthetic_1": synthetic_1,
    "trl": trl,
    "verl": verl,
}
MADE = WITH_IDS | WITH_TEXT
NO_MASK = {"open_instruct", "openai_batch", "lighteval"}
NO_LOGPS = {"lighteval"}
NO_REWARD = {"openai_batch", "prime_rl_tokens", "deepmath", "openthoughts"}
ASKED_AGAIN = {"deepmath", "openr1", "openthoughts", "roll", "synthetic_1"}
"""Whose prompts are messages, to be rendered again."""


def rows_of(name: FormatName, record: dict[str, Any], file: str = "r.jsonl") -> list[Any]:
    row_map = RowMap(CorpusEntry(path="d", format=name, accept_lossy=True))
    return [row for _, row in row_map.rows([(40, record)], file)]


def test_every_format_has_its_layout_here() -> None:
    assert set(MADE) == set(FORMATS) == set(get_args(FormatName))


@pytest.mark.parametrize("name", WITH_IDS)
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{text.group}-{text.number}")
def test_ids_masks_and_log_probabilities_are_those_of_the_text(
    name: FormatName, text: Text
) -> None:
    (row,) = rows_of(name, WITH_IDS[name](text))
    assert row["prompt_ids"] == list(text.prompt_ids)
    assert row["response_ids"] == list(text.response_ids)
    if name not in NO_MASK:
        assert row["response_mask"] == list(text.mask)
    if name not in NO_LOGPS:
        kept = [p for p, m in zip(row["rollout_logp"], text.mask, strict=True) if m]
        assert kept == [p for p, m in zip(text.logps, text.mask, strict=True) if m]
    if name not in NO_REWARD:
        assert row["reward"] == text.reward


@pytest.mark.parametrize("name", WITH_TEXT)
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{text.group}-{text.number}")
def test_texts_are_those_of_the_text(name: FormatName, text: Text) -> None:
    row = rows_of(name, WITH_TEXT[name](text))[0]
    assert row["response"] == text.response
    if name in ASKED_AGAIN:
        assert row["messages"] == [{"role": "user", "content": text.prompt}]
        assert row.get("prompt") is None
    else:
        assert row["prompt"] == text.prompt
    if name not in NO_REWARD and name != "openr1":  # which says right or wrong
        assert row["reward"] == text.reward


@pytest.mark.parametrize("name", MADE)
def test_a_file_is_told_by_its_names(name: FormatName) -> None:
    assert format_like(MADE[name](TEXTS[0])) == name


@pytest.mark.parametrize("name", MADE)
def test_another_record_is_rejected_and_a_row_of_its_own_has_an_id(name: FormatName) -> None:
    (row,) = rows_of(name, {"sample_id": "a"})
    assert isinstance(row, RowRejected)
    assert f"it is no record of {FORMATS[name].what}: there is no " in row.error
    assert all(isinstance(row["sample_id"], str) for row in rows_of(name, MADE[name](TEXTS[0])))


@pytest.mark.parametrize(
    ("name", "sample_id", "group_id"),
    [
        ("verl", "7_0_1", "7"),
        ("prime_rl", "t7-1/0", "7"),
        ("prime_rl_tokens", "4/1/1", None),
        ("open_instruct", "12/1", "12/7"),
        ("openai_batch", "7/1", "7"),
        ("areal", "7/1", "7"),
        ("lm_eval", "gsm8k/7/0", "gsm8k/7"),
        ("synthetic_1", "7-1", "7"),
        ("openr1", "7/0", "7"),
        ("skyrl", "samples_gsm8k_2026-08-01T10-00-00.123456.jsonl:40", None),
    ],
)
def test_ids_are_the_format_s_own_or_made_of_the_place(
    name: FormatName, sample_id: str, group_id: str | None
) -> None:
    file = "samples_gsm8k_2026-08-01T10-00-00.123456.jsonl"
    (row,) = rows_of(name, MADE[name](TEXTS[1]), file)
    assert (row["sample_id"], row.get("group_id")) == (sample_id, group_id)


def test_a_line_of_lists_is_a_row_each() -> None:
    record = roll(TEXTS[0])
    for field in ("id", "prompt", "messages", "responses", "scores"):
        record[field] = record[field] * 2
    rows = rows_of("roll", record)
    assert [row["sample_id"] for row in rows] == ["r.jsonl:40/0", "r.jsonl:40/1"]
    assert {row["temperature"] for row in rows} == {0.7}
    record["scores"] = [1.0]
    (row,) = rows_of("roll", record)
    assert "'responses' has 2 elements; expected a list of as many at 'scores'" in row.error


def test_a_trace_that_forks_is_a_row_a_branch() -> None:
    record = prime_rl(TEXTS[0])
    (trace,) = record["traces"]
    # A second answer to the same prompt.
    other = {"parent": 0, "sampled": True, "token_ids": [11, 12], "mask": [True] * 2}
    trace["nodes"].append(other | {"logprobs": [-1.0, -2.0]})
    first, second = rows_of("prime_rl", record)
    assert first["response_ids"] == [4, 5, 6]
    assert (second["prompt_ids"], second["response_ids"]) == ([1, 2, 3], [11, 12])
    assert second["rollout_logp"] == [-1.0, -2.0]
    assert [row["sample_id"] for row in (first, second)] == ["t7-0/0", "t7-0/1"]
    trace["nodes"][0]["parent"] = len(trace["nodes"])
    (row,) = rows_of("prime_rl", record)
    assert "is no parent of another node" in row.error


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("nemo_rl", {"input_lengths": [99]}, "input_lengths: expected a length of 0 to 8"),
        ("nemo_rl", {"token_ids": [5]}, "expected lists of lists"),
        ("slime", {"response_length": 7}, "response_length: expected 0 to 6"),
        ("prime_rl_tokens", {"loss_mask": [1]}, "the mask have 1 values for 6 ids"),
        ("prime_rl", {"traces": None}, "'traces': expected a list, got nothing"),
        ("openai_batch", {"response": {"body": {}}}, "expected a list, got nothing"),
        (
            "openai_batch",
            {"response": {"body": {"choices": [{"message": {}}]}}},
            "send requests with return_token_ids: true",
        ),
        ("openai_batch", {"error": {"code": "x"}}, "the request failed: "),
        ("lm_eval", {"resps": [[[-1.5, True]]]}, "as tasks of generate_until have it"),
        ("roll", {"messages": ["[not"]}, "messages: not JSON"),
        (
            "areal",
            {"segments": [{"role": "assistant"}, {"role": "tool"}, {"role": "assistant"}]},
            "an answer of several turns is text without a mask",
        ),
    ],
)
def test_a_record_that_is_not_whole_is_rejected_with_what_is_wrong(
    name: FormatName, change: dict[str, Any], said: str
) -> None:
    (row,) = rows_of(name, MADE[name](TEXTS[0]) | change)
    assert isinstance(row, RowRejected)
    assert said in row.error


def entry(path: Path, **fields: Any) -> CorpusEntry:
    return CorpusEntry.model_validate({"path": str(path)} | fields)


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.lossy])
def test_a_lossy_format_is_refused_unless_that_is_accepted_or_mended(
    name: FormatName, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [MADE[name](TEXTS[0])])
    with pytest.raises(Refused, match=rf"format {name}: .* can't be had back.*accept_lossy: true"):
        check_columns(*list_sources([entry(path, format=name)]))
    check_columns(*list_sources([entry(path, format=name, accept_lossy=True)]))
    asked = [{"role": "user", "content": "1+1="}]
    path = write_jsonl(tmp_path / "m.jsonl", [MADE[name](TEXTS[0]) | {"asked": asked}])
    check_columns(*list_sources([entry(path, format=name, columns={"messages": "asked"})]))


def test_messages_that_are_there_take_the_place_of_a_prompt_that_lost_its_tokens() -> None:
    asked = [{"role": "user", "content": "1+1="}]
    row_map = RowMap(CorpusEntry(path="d", format="trl", columns={"messages": "asked"}))
    ((_, row),) = row_map.rows([(0, trl(TEXTS[0]) | {"asked": asked})], "r.jsonl")
    assert isinstance(row, dict)
    assert (row["messages"], row["prompt"], row["response"]) == (asked, None, "2")


def test_a_format_that_does_not_fit_is_refused_with_the_one_that_does(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [nemo_rl(TEXTS[0])])
    files, maps = list_sources([entry(path, format="skyrl")])
    with pytest.raises(Refused, match=r"format skyrl: .* looks like NeMo-RL.*format: nemo_rl"):
        check_columns(files, maps)
    files, maps = list_sources([entry(path)])
    with pytest.raises(Refused, match=r"needs 'sample_id'.* looks like .*: format: nemo_rl"):
        check_columns(files, maps)
    check_columns(*list_sources([entry(path, format="nemo_rl")]))


@pytest.mark.parametrize("field", [{"explode": "a"}, {"split": {"ids": "a", "mask": "b"}}])
def test_a_format_says_itself_how_records_are_cut(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="format trl says that; leave one of them out"):
        entry(Path("x"), format="trl", **field).check(())


def test_what_a_record_has_besides_may_be_carried() -> None:
    (row,) = rows_of("skyrl", skyrl(TEXTS[0]))
    assert row["env_class"] == "gsm8k"
    rendered = RowMap(CorpusEntry(path="d", format="skyrl"))
    assert rendered.prompts.prompt_format == "rendered"


def test_what_torch_saved_is_read_without_running_code(tmp_path: Path) -> None:
    samples = [{n: v for n, v in slime(text).items() if n != "rollout_id"} for text in TEXTS]
    samples[0]["tokens"] = torch.tensor(samples[0]["tokens"])
    torch.save({"rollout_id": 6, "samples": samples}, tmp_path / "6.pt")
    files, maps = list_sources([entry(tmp_path / "6.pt", format="slime")])
    check_columns(files, maps)
    (unit,) = cut_units(files, 3, maps)
    assert unit.tokens == sum(len(text.prompt_ids) + len(text.response_ids) for text in TEXTS)
    rows = maps[0].rows(read_torch(files[0].uri, files[0].entry), files[0].uri)
    found = [row for _, row in rows if isinstance(row, dict)]
    assert [row["sample_id"] for row in found] == ["6/0", "6/1", "6/0"]
    assert [row["response_ids"] for row in found] == [list(text.response_ids) for text in TEXTS]
    with pytest.raises(Refused, match="no JSONL or Parquet file there"):
        list_sources([entry(tmp_path)])  # weights lie about in folders, too


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch it-ran",)


def test_a_pickle_runs_nothing_and_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"samples": [Runs()]}, tmp_path / "x.pt")
    (file,), _ = list_sources([entry(tmp_path / "x.pt", format="slime")])
    with pytest.raises(Refused, match="it can't be read without running code"):
        list(read_torch(file.uri, file.entry))
    assert not Path("it-ran").exists()
    for name in ("gen_batch.dp", "training_input.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps({}))
        with pytest.raises(Refused, match=r"a pickle, .*trainer\.rollout_data_dir"):
            list_sources([entry(tmp_path / name)])


def test_trl_s_conversations_are_rendered_again(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "1+1="}]
    record = trl(TEXTS[0]) | {"prompt": asked}
    record["completion"] = [{"role": "assistant", "content": "2"}]
    path = write_jsonl(tmp_path / "r.jsonl", [record])
    check_columns(*list_sources([entry(path, format="trl")]))
    (row,) = rows_of("trl", record)
    assert (row["messages"], row.get("prompt"), row["response"]) == (asked, None, "2")
    several = [*record["completion"], {"role": "tool", "content": "x"}]
    (row,) = rows_of("trl", record | {"completion": several})
    assert isinstance(row, RowRejected)
    assert "text without a mask" in row.error


def test_the_same_task_of_two_policies_has_ids_of_their_own() -> None:
    file = "samples_gsm8k_2026-08-01T10-00-00.123456.jsonl"
    ids = []
    for generator in ("base", "rl"):
        constants = {"generator": generator}
        row_map = RowMap(CorpusEntry(path="d", format="lm_eval", constants=constants))
        ((_, row),) = row_map.rows([(0, lm_eval(TEXTS[0]))], file)
        assert isinstance(row, dict)
        ids.append(row["sample_id"])
    assert ids == ["base/gsm8k/7/0", "rl/gsm8k/7/0"]
