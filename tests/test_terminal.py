"""What a person at a terminal sees of commands, and what a program reads of them."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_rows, write_jsonl
from typer.testing import CliRunner

import dlogp_ray
from dlogp_ray.cli import app
from dlogp_ray.config import SCHEMES, ScoreConfig
from dlogp_ray.errors import Refused

ESCAPES = "\x1b]0;owned\x07\x1b[2Jred\u202e"


@pytest.fixture(scope="module")
def run(policy_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run, of which one row was rejected, and names hold escape sequences."""
    folder = tmp_path_factory.mktemp("terminal")
    rows = [row | {"generator": ESCAPES} for row in make_rows(4)]
    rows.append(make_rows(1)[0] | {"sample_id": ESCAPES, "response_ids": ESCAPES})
    config = ScoreConfig.from_mapping(
        {
            "corpus": str(write_jsonl(folder / "c.jsonl", rows)),
            "policies": {name: str(path) for name, path in policy_folders.items()},
            "output": str(folder / "runs"),
            "run_id": "terminal",
            "run_on": "here",
        }
    )
    return dlogp_ray.score(config, progress=False).run


def on_a_terminal(*words: str) -> str:
    """What the command sends to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dlogp_ray", *words],
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
        env=os.environ | {"COLUMNS": "200", "TERM": "xterm"},
    )
    os.close(theirs)
    sent = bytearray()
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # the last writer is gone
            break
        if not part:
            break
        sent += part
    os.close(ours)
    process.wait()
    return sent.decode()


def in_a_pipe(*words: str) -> str:
    done = CliRunner().invoke(app, words, prog_name="dlogp")
    assert done.exit_code == 0, done.output
    return done.stdout


def test_json_is_for_programs(run: str) -> None:
    words = ("sparsity", run, "--no-progress", "--run-on", "here")
    seen = on_a_terminal(*words)
    assert "report and tables: " in seen
    assert "{" not in seen
    *table, last = in_a_pipe(*words).splitlines()
    assert json.loads(last)["run"] == run
    assert any("report and tables: " in line for line in table)
    (alone,) = in_a_pipe(*words, "--json").splitlines()
    assert json.loads(alone).keys() == json.loads(last).keys()
    (alone,) = on_a_terminal(*words, "--json").splitlines()
    assert json.loads(alone)["run"] == run


@pytest.mark.parametrize(
    "words",
    [
        ("show", "{run}"),
        ("query", "{run}", "SELECT generator, sample_id, error FROM scores"),
        ("query", "{run}", "SELECT generator, sample_id FROM scores", "--format", "csv"),
        ("query", "{run}", "SELECT generator FROM scores", "--format", "json"),
        ("query", "{run}", f"SELECT CAST('{ESCAPES}' AS INT)"),
        ("sparsity", "{run}", "--no-progress", "--run-on", "here"),
        ("show", ESCAPES),
    ],
    ids=" ".join,
)
def test_no_control_character_of_a_text_is_sent(words: tuple[str, ...], run: str) -> None:
    seen = on_a_terminal(*(word.format(run=run) for word in words))
    for sequence in ("\x1b]0;", "\x1b[2J", "\u202e", "\x07"):
        assert sequence not in seen
    assert "owned" in seen  # it is shown, spelled out


def test_parquet_is_not_for_a_terminal(run: str) -> None:
    seen = on_a_terminal("query", run, "SELECT 1", "--format", "parquet")
    assert "give --out FILE with it" in seen


def test_a_rejected_row_is_told_by_its_line(run: str) -> None:
    assert "c.jsonl, line 5 (byte " in in_a_pipe("show", run)


COMMANDS = [str(one.name or one.callback.__name__) for one in app.registered_commands]


def test_commands_are_described_whole() -> None:
    listed = in_a_pipe("-h").partition("Commands:")[2].partition("Exit codes")[0]
    assert all(f"\n  {command} " in listed for command in COMMANDS)
    assert "..." not in listed


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_names_the_command(command: str) -> None:
    text = in_a_pipe(command, "-h")
    assert f"Example: dlogp {command} " in " ".join(text.split())
    assert "Exit codes: " in text


def test_only_commands_that_end_with_a_code_tell_of_it() -> None:
    """A run that was made from something else is met by jobs that make one, 5 by a store too."""
    tells = {c for c in COMMANDS if "5 the run exists" in " ".join(in_a_pipe(c, "-h").split())}
    assert tells == {"score", "intervene", "doctor"}


def test_the_version_is_the_package_s() -> None:
    from importlib.metadata import version

    assert in_a_pipe("--version") == f"dlogp {version('dlogp_ray')}\n"


def test_help_of_reweight_has_each_scheme_with_its_defaults() -> None:
    text = in_a_pipe("reweight", "-h")
    for name, scheme in SCHEMES.items():
        (line,) = (line.strip() for line in text.splitlines() if line.strip().startswith(name))
        for parameter, field in scheme.model_fields.items():
            if parameter != "scheme":
                default = "…" if field.is_required() else field.default
                shown = "none" if default is None else default
                assert f"{parameter}={shown}".removesuffix(".0") in line


def test_help_of_query_has_the_views_and_their_columns(run: str) -> None:
    text = " ".join(in_a_pipe("query", "-h").split())
    opened = dlogp_ray.open_run(run)
    for view in ("scores", "tokens"):
        columns = opened.sql(f"SELECT * FROM {view}").columns
        assert f"{view}: {', '.join(columns)}" in text


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT * FROM weights", "no view weights yet; `dlogp reweight {run} --scheme NAME` mak"),
        ("SELECT * FROM sparsity_joint", "There are the views"),  # that one is there by now
        ("SELECT nothere FROM tokens", "tokens has the columns position, token_id, response_mask"),
        ("SELECT * FROM nothere", "There are the views rejected, scores, "),
    ],
)
def test_a_query_that_fails_says_what_can_be_asked(run: str, sql: str, said: str) -> None:
    if "sparsity" in sql:
        in_a_pipe("sparsity", run, "--no-progress", "--run-on", "here")
        sql = "SELECT nothere FROM sparsity_joint"
    done = CliRunner().invoke(app, ["query", run, sql])
    assert isinstance(done.exception, Refused)
    assert said.format(run=run) in str(done.exception)


def test_a_query_for_an_analysis_that_is_not_there_says_the_command(
    run: str, tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "sparsity", ignore_errors=True)
    words = ["query", str(copy), "SELECT * FROM sparsity_histograms"]
    done = CliRunner().invoke(app, words)
    assert f"There is no view sparsity yet; `dlogp sparsity {copy}` makes it" in str(done.exception)


def test_no_line_wraps_in_a_pipe(tmp_path: Path) -> None:
    lines = in_a_pipe("doctor", str(tmp_path), "--rounds", "1").splitlines()
    findings = {finding["detail"] for finding in json.loads(lines[-1])["findings"]}
    assert any(len(detail) > 60 for detail in findings)
    assert all(any(detail in line for line in lines[:-1]) for detail in findings)
