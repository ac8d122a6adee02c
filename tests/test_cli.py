"""The command line: what it prints, and how it ends."""

import contextlib
import csv
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import make_rows, write_jsonl
from score_tables import made_up_run, score_rows
from typer.testing import CliRunner

import dlogp_ray
from dlogp_ray import cli
from dlogp_ray.cli import app
from dlogp_ray.config import ScoreConfig
from dlogp_ray.errors import Refused


@pytest.fixture(scope="module")
def run(policy_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run of four good rows and a rejected one."""
    folder = tmp_path_factory.mktemp("cli")
    config = ScoreConfig.from_mapping(
        {
            "corpus": str(write_jsonl(folder / "c.jsonl", [*make_rows(4), "no json"])),
            "policies": {name: str(path) for name, path in policy_folders.items()},
            "output": str(folder / "runs"),
            "run_id": "cli",
            "run_on": "here",
        }
    )
    return dlogp_ray.score(config, progress=False).run


def call(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `dlogp WORDS`."""
    monkeypatch.setattr(sys, "argv", ["dlogp", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_show_says_what_is_there_and_what_was_rejected(
    run: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(monkeypatch, capfd, "show", run)
    assert code == 0
    for expected in ("sealed", "1 of 1 units", "5, 1 of them rejected", "malformed (1)"):
        assert expected in out
    code, out, _ = call(monkeypatch, capfd, "show", run, "--json")
    seen = json.loads(out)
    assert seen["summary"]["status"] == {"ok": 4, "malformed": 1}
    assert seen["rejected"][0]["status"] == "malformed"
    code, out, _ = call(monkeypatch, capfd, "show", run, "--watch", "--json")
    (look,) = [json.loads(line) for line in out.splitlines()]  # a sealed run is looked at once
    assert (look["units"], look["units_done"], look["sealed"]) == (1, 1, True)
    code, out, _ = call(monkeypatch, capfd, "show", run, "--watch")
    assert out.splitlines()[0] == "1 of 1 units (100.0% of the tokens), sealed"


def test_query_prints_tables_csv_and_json(
    run: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sql = "SELECT sample_id, len(response_ids) AS n FROM scores WHERE status = 'ok' ORDER BY 1"
    expected = [(row["sample_id"], len(row["response_ids"])) for row in make_rows(4)]
    _, out, _ = call(monkeypatch, capfd, "query", run, sql, "--format", "json")
    assert [tuple(json.loads(line).values()) for line in out.splitlines()] == expected
    _, out, _ = call(monkeypatch, capfd, "query", run, sql, "--format", "csv")
    assert [(i, int(n)) for i, n in list(csv.reader(io.StringIO(out)))[1:]] == expected
    lists = "SELECT sample_id, response_ids FROM scores WHERE status = 'ok' ORDER BY 1"
    _, out, _ = call(monkeypatch, capfd, "query", run, lists, "--format", "csv")
    found = [(i, json.loads(ids)) for i, ids in list(csv.reader(io.StringIO(out)))[1:]]
    assert found == [(row["sample_id"], row["response_ids"]) for row in make_rows(4)]
    _, out, _ = call(monkeypatch, capfd, "query", run, sql)
    assert all(name in out for name, _ in expected)


def test_an_unsealed_run_says_what_share_answers(
    run: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seal = Path(run) / "_SUCCESS"
    content = seal.read_bytes()
    seal.unlink()
    try:
        code, _, err = call(monkeypatch, capfd, "query", run, "SELECT 1")
    finally:
        seal.write_bytes(content)
    assert code == 0
    assert "not sealed" in err
    assert "1 of 1 units" in err


def test_plan_prints_units_tokens_bytes_and_hours_and_writes_nothing(
    run: str,
    tmp_path: Path,
    policy_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rows = make_rows(50)
    corpus = write_jsonl(tmp_path / "c.jsonl", rows)
    job = {
        "corpus": str(corpus),
        "policies": {name: str(path) for name, path in policy_folders.items()},
        "output": str(tmp_path / "runs"),
        "run_id": "planned",
        "unit_tokens": 200,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    code, out, _ = call(monkeypatch, capfd, "score", str(tmp_path / "job.yaml"), "--plan")
    assert code == 0
    plan = json.loads(out.splitlines()[-1])
    tokens = sum(len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows)
    # JSON written with other white space: the estimate by tokens a byte is good to a few percent.
    assert plan["tokens"] == pytest.approx(tokens, rel=0.05)
    assert plan["units"] == -(-plan["tokens"] // 200)
    assert plan["bytes"] == pytest.approx(corpus.stat().st_size, abs=plan["units"])
    assert plan["hours"] > 0
    assert plan["noise"]["tokens"] == sum(len(row["response_ids"]) for row in rows)
    assert "unresolved  below" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["score", "absent.yaml"], 2, "absent.yaml"),
        (["show", "absent"], 2, "there is no run there"),
        (["query", "absent", "SELECT 1"], 2, "there is no run there"),
        (["unheard-of"], 2, "No such command"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(
    words: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    ended, out, err = call(monkeypatch, capfd, *words)
    assert (ended, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("form", ["table", "csv", "json", "parquet"])
@pytest.mark.parametrize(
    ("sql", "code", "message"),
    [
        ("SELECT sum(list_sum(delta_logp)) FROM scores", 6, "`dlogp verify"),
        ("SELECT sample_id::INT FROM scores", 2, "Could not convert string"),
    ],
)
def test_a_query_that_fails_while_it_reads_is_one_message(
    form: str,
    sql: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = made_up_run(str(tmp_path / "r"), [score_rows(300)])
    path = Path(run.object_uri("part-00000000"))
    columns = pq.ParquetFile(path).metadata.row_group(0)
    (column,) = (
        one
        for one in map(columns.column, range(columns.num_columns))
        if one.path_in_schema.startswith("delta_logp")
    )
    data = bytearray(path.read_bytes())
    # The page's header, and the first bytes of what zstd made of it.
    data[column.data_page_offset : column.data_page_offset + 64] = bytes(64)
    path.write_bytes(data)
    ended, _, err = call(monkeypatch, capfd, "query", run.uri, sql, "--format", form)
    assert ended == code
    assert message in err
    assert "Traceback" not in err


def test_help_of_the_job_entry_point() -> None:
    entry = Path(__file__).parents[1] / "jobs/score.py"
    done = subprocess.run([sys.executable, entry, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--plan" in done.stdout
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("command", ["score", "intervene"])
def test_the_address_of_a_job_file_is_told_without_credentials(command: str) -> None:
    done = CliRunner().invoke(cli.app, [command, "s3://KEY:HUSHHUSH@bucket/job.yaml", "--json-log"])
    assert isinstance(done.exception, Refused)
    assert "bucket/job.yaml" in str(done.exception)
    assert "HUSHHUSH" not in str(done.exception) + done.output


def test_an_interrupted_query_is_an_interruption(run: str) -> None:
    """DuckDB takes the signal, and makes an error of its own of it."""
    from dlogp_ray.tables.sql import rows_read

    with pytest.raises(KeyboardInterrupt), rows_read(dlogp_ray.open_run(run)):
        raise RuntimeError("Query interrupted")
    with pytest.raises(RuntimeError, match="another"), rows_read(dlogp_ray.open_run(run)):
        raise RuntimeError("another")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("query r q --format xlsx", "'xlsx' is not one of 'table', 'csv', 'json', 'parquet'"),
        ("show r --every x", 'expected a number (got "x")'),
        ("show r --every -1", "expected 0.1 or more (got"),
        ("score j.yaml --actors x", 'expected a whole number (got "x")'),
        ("demo --problems 0", "expected 1 or more (got"),
    ],
)
def test_an_option_is_refused_in_plain_words(words: str, said: str) -> None:
    done = CliRunner().invoke(app, words.split(), prog_name="dlogp")
    assert done.exit_code == 2
    assert said in done.output
    assert "Input should" not in done.output
    assert "Value error" not in done.output


def test_an_interruption_while_all_is_imported_is_no_traceback() -> None:
    code = """
import builtins, sys
imported = builtins.__import__
def interrupted(name, *rest):
    if name == "typer":
        raise KeyboardInterrupt
    return imported(name, *rest)
builtins.__import__ = interrupted
from dlogp_ray.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "dlogp: interrupted\n")


def test_an_error_in_a_query_is_told_by_the_line_of_the_query(run: str) -> None:
    query = "SELECT\n  CAST(sample_id AS INT)\nFROM scores"
    for form in ("table", "csv"):
        done = CliRunner().invoke(app, ["query", run, query, "--format", form])
        assert "LINE 2:   CAST(sample_id AS INT)" in str(done.exception)


def test_a_table_says_how_many_rows_there_are(run: str) -> None:
    for name in ("n", "a_name_so_long_that_all_stands_in_a_line"):
        for rows, told in ((300, "300 rows (200 shown)"), (123456, "more than 9999 rows (200")):
            query = f"SELECT range AS {name} FROM range({rows})"
            shown = CliRunner().invoke(app, ["query", run, query]).stdout
            assert told in " ".join(shown.split())


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("low_prob:alpha=0.2,alpha=0.3", "alpha stands there twice"),
        ("low_prob,alpha=0.2", "a colon stands behind the name, as in low_prob:alpha=0.2"),
        ("low_prob:alpha=nan", "expected a finite number"),
    ],
)
def test_a_scheme_that_is_spelled_wrong_is_refused(run: str, scheme: str, said: str) -> None:
    done = CliRunner().invoke(app, ["reweight", run, "--scheme", scheme])
    assert said in str(done.exception)
    assert "… is to be given" not in str(done.exception)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "the query is empty; expected one query that returns rows"),
        ("DROP TABLE scores", "a run is read-only"),
        ("SELECT delta_lopg FROM tokens", "Did you mean delta_logp?"),
        ('SELECT 1 FROM tokens WHERE policy = "rl"', "Text wants single quotes: 'rl'"),
        ("SELECT * FROM curve", "curve is a view of a run of `dlogp intervene`; this one has"),
        ("SELECT * FROM read_csv('/etc/passwd')", "SQL sees the run's views alone"),
    ],
)
def test_a_query_that_can_not_be_is_told_what_was_meant(run: str, query: str, said: str) -> None:
    told = str(CliRunner().invoke(app, ["query", run, query]).exception)
    assert said in told
    assert "Candidate bindings" not in told
    assert 'Did you mean "' not in told


@pytest.mark.parametrize(
    ("by", "said"),
    [("response_ids", "has a value a token"), ("reward,group_id", "--by reward --by group_id")],
)
def test_what_figures_can_not_be_split_by_says_why(run: str, by: str, said: str) -> None:
    assert said in str(CliRunner().invoke(app, ["sparsity", run, "--by", by]).exception)


SLOW = (
    "SELECT sum(a.position * b.position * c.position) FROM tokens a, tokens b, tokens c, tokens d, "
    "tokens e, tokens f"
)


def test_a_query_ends_with_ctrl_c(run: str) -> None:
    """Of a kind in which DuckDB itself looks for no signal."""
    command = [sys.executable, "-m", "dlogp_ray", "query", run, SLOW]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while process.poll() is None:  # an interruption that comes too soon ends it as well
            time.sleep(5)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            break
        assert process.returncode == 130
        assert process.stderr.read() == "dlogp: interrupted\n"
    finally:
        process.kill()


def test_standard_output_that_is_closed_or_full_is_no_traceback(run: str) -> None:
    query = [sys.executable, "-m", "dlogp_ray", "query", run, "--format", "csv"]
    many = "SELECT * FROM range(1000000)"
    with subprocess.Popen(
        [*query, many], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (141, b"")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dlogp_ray", "show", run],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        2,
        b"dlogp: standard output: No space left on device\n",
    )
