"""A job file to begin with: what is guessed of a corpus scores it, and editors can check it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import make_rows, write_jsonl
from typer.testing import CliRunner

import dlogp_ray
from dlogp_ray.cli import app
from dlogp_ray.config import InterveneConfig, ScoreConfig
from dlogp_ray.config.job_file import schema_of
from dlogp_ray.corpus.files import list_corpus
from dlogp_ray.corpus.guessing import Guess, guess

NEMO_RL = {
    "input_lengths": [4],
    "token_ids": [[3, 12, 5, 1, 0]],
    "token_loss_mask": [[0, 0, 1, 1, 0]],
    "generation_logprobs": [[0, 0, -0.5, -0.5, 0]],
    "rewards": [1.0],
}


def init(folder: Path, *words: str) -> Any:
    out = folder / "job.yaml"
    done = CliRunner().invoke(app, ["init", *words, "--out", str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    return yaml.safe_load(out.read_text())


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"sample_id": "a", "prompt_ids": [1], "response_ids": [2]}, Guess()),
        (
            {"id": 1, "question": "q", "completion": "c", "score": 1.0, "source": "web"},
            Guess(
                None,
                {
                    "sample_id": "id",
                    "prompt": "question",
                    "response": "completion",
                    "reward": "score",
                },
                carry=("source",),
            ),
        ),
        (
            {"prompt_token_ids": [1], "output_ids": [2], "question": "q", "logprobs": [-1.0]},
            Guess(
                None,
                {
                    "prompt_ids": "prompt_token_ids",
                    "response_ids": "output_ids",
                    "rollout_logp": "logprobs",
                },
                auto=True,
                carry=("question", "rollout_logp"),
            ),
        ),
        (NEMO_RL, Guess("nemo_rl")),
        ({"conversations": [{"from": "human", "value": "q"}]}, Guess("openthoughts")),
    ],
)
def test_what_a_file_s_columns_show(row: dict[str, Any], expected: Guess, tmp_path: Path) -> None:
    (file,) = list_corpus([str(write_jsonl(tmp_path / "c.jsonl", [row]))])
    assert guess(file, 2**20) == expected


def test_a_job_that_was_guessed_is_scored(tmp_path: Path, policy_folders: dict[str, Path]) -> None:
    rows = [
        {
            "uid": row["sample_id"],
            "prompt_tokens": row["prompt_ids"],
            "output_ids": row["response_ids"],
        }
        for row in make_rows(6)
    ]
    base = write_jsonl(tmp_path / "base/c.jsonl", rows)
    rl = write_jsonl(tmp_path / "rl/c.jsonl", [NEMO_RL])
    init(
        tmp_path,
        *("--corpus", f"base={base}", "--corpus", f"rl={rl.parent}"),
        *("--base", str(policy_folders["base"]), "--rl", str(policy_folders["rl"])),
        *("--output", str(tmp_path / "runs"), "--run-id", "guessed"),
    )
    config = ScoreConfig.from_yaml(tmp_path / "job.yaml", run_on="here")
    result = dlogp_ray.score(config, progress=False)
    assert (result.exit_code, result.rows) == (0, 7)
    counted = dlogp_ray.open_run(result.run).sql(
        "SELECT generator, count(*) FROM scores GROUP BY 1 ORDER BY 1"
    )
    assert counted.fetchall() == [("base", 6), ("rl", 1)]


def test_the_file_says_what_it_is_and_is_not_replaced(
    tmp_path: Path, policy_folders: dict[str, Path]
) -> None:
    corpus = str(write_jsonl(tmp_path / "My Rollouts.jsonl", make_rows(2)))
    words = ["--corpus", corpus, "--base", "b", "--rl", "early=e", "--rl", "late=l"]
    fields = init(tmp_path, *words)
    assert fields == {
        "corpus": [corpus],
        "policies": {"base": "b", "early": "e", "late": "l"},
        "output": "runs",
        "run_id": "my-rollouts",
    }
    text = (tmp_path / "job.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=score.schema.json\n")
    assert (tmp_path / "score.schema.json").exists()
    done = CliRunner().invoke(app, ["init", *words, "--out", str(tmp_path / "job.yaml")])
    assert "is there already" in str(done.exception)
    done = CliRunner().invoke(app, ["init", "--corpus", corpus, "--out", str(tmp_path / "x.yaml")])
    assert "base is missing; give --corpus, --base and --rl" in str(done.exception)


README = Path(__file__).parents[1] / "dlogp_ray/config/README.md"
MINIMAL = {"policies": {"base": "b"}, "output": "o", "run_id": "r"}


def valid(kind: Any, fields: dict[str, Any]) -> bool:
    schema = json.loads(schema_of(kind))
    return bool(jsonschema.Draft202012Validator(schema).is_valid(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"corpus": "rollouts/"},
        {"corpus": ["a", {"path": "b", "format": "trl", "constants": {"generator": "rl"}}]},
        {"corpus": "a", "actors": 4, "compile": True},
        {"corpus": "a", "actors": {"min": 1, "max": 8}, "carry": ["x"]},
        {"corpus": "a", "policies": {"base": {"path": "b", "step": 3}, "rl": "r"}},
    ],
    ids=str,
)
def test_what_a_job_file_may_have_is_valid_by_the_schema(fields: dict[str, Any]) -> None:
    ScoreConfig.from_mapping(MINIMAL | fields)
    assert valid(ScoreConfig, MINIMAL | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"corpus": "a", "temprature": 1},
        {"corpus": "a", "temperature": "hot"},
        {"corpus": {"path": "a", "formt": "trl"}},
        {"corpus": {"path": "a", "format": "trll"}},
        {"corpus": []},
        {},
    ],
    ids=str,
)
def test_an_editor_sees_what_is_wrong(fields: dict[str, Any]) -> None:
    assert not valid(ScoreConfig, MINIMAL | fields)


@pytest.mark.parametrize(("kind", "place"), [(ScoreConfig, 0), (InterveneConfig, 1)])
def test_the_readme_s_job_files_are_valid_by_the_schemas(kind: Any, place: int) -> None:
    shown = README.read_text().split("```yaml\n")[place + 1].partition("```")[0]
    assert valid(kind, yaml.safe_load(shown))
