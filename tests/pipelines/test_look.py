"""Looking at a corpus before it is scored: tokens as policies see them, and what looks wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_policy_folder, make_rows, make_tokenizer, write_jsonl
from typer.testing import CliRunner

from dlogp_ray.cli import app
from dlogp_ray.config import ScoreConfig
from dlogp_ray.pipelines.score.look import look

EOS = 1
"""Of the tests' tokenizer: a character's id is 2 + its place in 0123456789+=abcdefghij."""
GOOD = {
    "sample_id": "a",
    "prompt_ids": [3, 12, 4, 13],
    "response_ids": [5, EOS],
    "generator": "rl",
    "temperature": 1.0,
}


def config(make_config: Any, tmp_path: Path, *rows: Any, **fields: Any) -> ScoreConfig:
    corpus = str(write_jsonl(tmp_path / "c.jsonl", list(rows)))
    made: ScoreConfig = make_config(corpus=corpus, **fields)
    return made


def test_tokens_are_those_that_will_be_scored(make_config: Any, tmp_path: Path) -> None:
    row = GOOD | {"response_mask": [0, 1]}
    (file,) = look(config(make_config, tmp_path, row)).files
    (shown,) = file.shown
    assert [(p.token, p.text) for p in shown.prompt] == [(3, "1"), (12, "+"), (4, "2"), (13, "=")]
    assert [(p.special, p.masked) for p in shown.response] == [(False, True), (True, False)]
    assert (file.prompt_tokens, file.response_tokens) == ((4, 4.0, 4), (2, 2.0, 2))
    assert shown.place.endswith("c.jsonl, line 1 (byte 0)")


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({}, None),
        ({"response_ids": [5]}, "the answer has no end-of-sequence token"),
        ({"temperature": 0.5}, "sampled at temperature 0.5, and is scored at 1"),
        ({"generator": None}, "who wrote it is not said"),
        ({"generator": "sft"}, "its generator 'sft' is no policy of the job"),
    ],
)
def test_what_one_would_ask_about_a_row(
    make_config: Any, tmp_path: Path, change: dict[str, Any], warning: str | None
) -> None:
    rows = [GOOD | {"sample_id": "good"}, GOOD | change]
    warnings = look(config(make_config, tmp_path, *rows)).warnings
    if warning is None:
        assert warnings == []
    else:
        (told,) = warnings
        assert told.startswith("1 of 2 rows: ")
        assert warning in told
        assert "line 2 (byte " in told


def test_text_without_its_end_is_told_what_scores_one(make_config: Any, tmp_path: Path) -> None:
    row = {"sample_id": "a", "prompt": "1+2=", "response": "3", "generator": "rl"}
    (told,) = look(config(make_config, tmp_path, row)).warnings
    assert "append_eos: true scores one" in told
    assert look(config(make_config, tmp_path, row, append_eos=True)).warnings == []


def test_groups_are_of_one_prompt_and_several_answers(make_config: Any, tmp_path: Path) -> None:
    rows = [GOOD | {"sample_id": f"s{i}", "group_id": f"g{i // 2}"} for i in range(4)]
    assert look(config(make_config, tmp_path, *rows)).warnings == []
    rows[1]["prompt_ids"] = [3, 13]
    (told,) = look(config(make_config, tmp_path, *rows)).warnings
    assert "1 of 2 groups have several prompts" in told
    apart = [row | {"group_id": f"own{i}"} for i, row in enumerate(rows)]
    (told,) = look(config(make_config, tmp_path, *apart)).warnings
    assert "each group has one row here" in told


def chat_policies(tmp_path: Path) -> dict[str, str]:
    """Two policies whose tokenizer begins texts, and has a template with a header."""
    folders = {}
    for seed, name in enumerate(("base", "rl")):
        folder = make_policy_folder(tmp_path / name, seed=seed)
        tokenizer = make_tokenizer()
        tokenizer.add_special_tokens({"bos_token": "a", "additional_special_tokens": ["b"]})
        tokenizer.chat_template = (
            "{% for m in messages %}a{{ m['content'] }}{% endfor %}"
            "{% if add_generation_prompt %}b{% endif %}"
        )
        tokenizer.save_pretrained(folder)
        folders[name] = str(folder)
    return folders


def test_a_chat_prompt_without_its_header_and_two_beginnings_are_told(
    make_config: Any, tmp_path: Path
) -> None:
    policies = chat_policies(tmp_path)
    a, b = 14, 15
    rows = [
        GOOD | {"sample_id": "whole", "prompt_ids": [a, 3, b]},
        GOOD | {"sample_id": "twice", "prompt_ids": [a, a, 3, b]},
        GOOD | {"sample_id": "headless", "prompt_ids": [a, b, 3]},
    ]
    warnings = look(config(make_config, tmp_path, *rows, policies=policies)).warnings
    assert [told.partition(": ")[2].partition(" (the first")[0] for told in warnings] == [
        "the prompt begins with the beginning-of-sequence token twice",
        "a chat prompt without the header that an answer follows",
    ]


def test_the_command_shows_tokens_and_no_control_character(
    make_config: Any, tmp_path: Path
) -> None:
    rows = [
        GOOD | {"response_mask": [0, 1]},
        GOOD | {"sample_id": "\x1b]0;owned\x07", "response_ids": [99]},
    ]
    job = tmp_path / "job.yaml"
    made = config(make_config, tmp_path, *rows, *make_rows(3))
    job.write_text(json.dumps(made.model_dump(mode="json")))
    done = CliRunner().invoke(app, ["corpus", str(job), "--sample", "2"])
    assert done.exit_code == 0, done.output
    assert "prompt, 4 tokens:\n    1+2=\n" in done.stdout
    assert "    ⟦3⟧«<eos>»\n" in done.stdout
    assert "rejected 1 id_outside_vocabulary: " in done.stdout
    assert "\x1b" not in done.stdout
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["files"][0]["rows"] == 5
    assert document["files"][0]["shown"][0]["response"][1] == [EOS, "<eos>", True, False]
    assert not Path(made.output).exists()
