"""What a job says while it runs: its log, and its metrics."""

import json
import re
import time
import urllib.request
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_rows, write_broken_gzip, write_jsonl
from typer.testing import CliRunner

from dlogp_ray import events, store
from dlogp_ray.cli import app, main
from dlogp_ray.corpus.reading import read_jsonl
from dlogp_ray.corpus.rows import check_rows
from dlogp_ray.pipelines.run.chain import PoolActor
from dlogp_ray.pipelines.run.loading_watch import LoadingWatch
from dlogp_ray.pipelines.run.placement import Placement
from dlogp_ray.pipelines.run.row import to_bytes
from dlogp_ray.pipelines.score.plan import ScorePlan, plan_score


def test_the_log_has_a_line_of_json_for_every_event(
    tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = [*make_rows(40), {"sample_id": "bad", "prompt_ids": [2], "response_ids": []}]
    write_jsonl(tmp_path / "c/a.jsonl", rows)
    write_broken_gzip(tmp_path / "c/z.jsonl.gz")
    config = make_config(corpus=str(tmp_path / "c"))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    monkeypatch.setattr(events.LOG, "handlers", [])
    monkeypatch.setattr(events.LOG, "propagate", True)  # afterwards too
    done = CliRunner().invoke(app, ["score", str(tmp_path / "job.yaml"), "--json-log"])
    # Beside them stands what Ray prints: its logging was set up by the tests.
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert "tokens/s" not in done.stderr  # no progress
    result = json.loads(done.stdout.splitlines()[-1])

    said = [line["event"] for line in lines]
    assert (said[0], said[1], said[-1]) == ("planned", "scoring", "finished")
    assert lines[0]["units"] == lines[0]["missing"] == result["units"]
    assert Counter(said)["unit done"] == result["units_scored"] == result["units"] - 1
    (failed,) = [line for line in lines if line["event"] == "unit failed"]
    assert {failed["unit"]: failed["cause"]} == result["units_failed"]
    assert failed["level"] == "error"
    units = [line for line in lines if line["event"] == "unit done"]
    assert sum(unit["rows"] for unit in units) == result["rows"] == 41
    assert sum(unit["rejected"] for unit in units) == result["rejected"] == 1
    assert sum(unit["tokens"] for unit in units) == result["tokens"]
    assert all(unit["seconds"] > 0 and unit["created"] for unit in units)
    assert {unit["uncompiled"] for unit in units} == {""}
    assert {key: lines[-1][key] for key in result} == result
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times)


def test_the_log_says_of_a_job_that_is_refused_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(events.LOG, "handlers", [])
    monkeypatch.setattr(events.LOG, "propagate", True)  # afterwards too
    monkeypatch.setattr("sys.argv", ["dlogp", "score", str(tmp_path / "no.yaml"), "--json-log"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"], line["exit_code"]) == ("ended", "error", 2)
    assert "no.yaml: No such file" in line["cause"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_actors_count_tokens_rows_and_units_for_prometheus(
    tmp_path: Path, make_config: Any
) -> None:
    import ray

    rows: list[Any] = [*make_rows(30), {"sample_id": "bad", "prompt_ids": [2], "response_ids": []}]
    corpus = write_jsonl(tmp_path / "c.jsonl", rows)
    job = plan_score(make_config(corpus=str(corpus), run_id=f"metrics-{time.time_ns()}")).job
    raw = read_jsonl(str(corpus), store.entry(str(corpus)), 0, None, None)
    table = check_rows(raw, "c", job.rules, job.text_tokenizer)
    watch = ray.remote(num_cpus=0)(LoadingWatch).remote()
    placement = Placement(1, 1, 1, 0)
    actor = ray.remote(num_cpus=0)(PoolActor).remote(ScorePlan.stages, job, placement, watch)
    good = {"index": 0, "rows": 31, "payload": to_bytes(table), "error": ""}
    assert not ray.get(actor.__call__.remote(good))["error"]
    assert ray.get(actor.__call__.remote(good | {"payload": b"torn"}))["error"]

    prompts = sum(len(row["prompt_ids"]) for row in rows[:-1])
    responses = sum(len(row["response_ids"]) for row in rows[:-1])
    expected = {
        "dlogp_units_total scored": 1,
        "dlogp_units_total failed": 1,
        "dlogp_tokens_total": prompts + responses,
        "dlogp_response_tokens_total rl": responses,
        "dlogp_rows_total rl ok": 30,
        "dlogp_rows_total rl empty_response": 1,
        "dlogp_unit_seconds_count": 1,
    }
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, float] = {}
    end = time.monotonic() + 300  # Ray reports every 10 s
    while expected.items() - found.items() and time.monotonic() < end:
        time.sleep(1)
        text = urllib.request.urlopen(address).read().decode()
        found = samples(text, job.config.run_id)
    assert {name: found.get(name) for name in expected} == expected


def samples(text: str, run: str) -> dict[str, float]:
    """Metric and its labels' values -> value, of one run."""
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"ray_(dlogp_\w+)\{(.*)\} (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            if labels.get("run") == run:
                own = [labels[name] for name in ("outcome", "policy", "status") if name in labels]
                found[" ".join([match[1], *own])] = float(match[3])
    return found
