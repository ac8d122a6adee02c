"""`dlogp demo` end to end: every column of its table against a plain forward over the same text."""

import io
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import dlogp_ray
from dlogp_ray import store
from dlogp_ray.cli import app
from dlogp_ray.demo import walkthrough
from dlogp_ray.demo.pair import checkpoint_path, rl_name
from dlogp_ray.tables.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

EXACT = {"rank_base", "rank_rl", "rank_base_of_rl_top1", "top1_id_base", "top1_id_rl"}


def forward_by_length(rows: list[dict[str, Any]], folder: Path) -> Iterator[np.ndarray]:
    """log-softmax over the vocabulary for each row's response, float32, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["prompt_ids"] + row["response_ids"]])).logits[0]
        yield torch.log_softmax(logits, -1)[len(row["prompt_ids"]) - 1 : -1].numpy()


def expected_columns(base: np.ndarray, rl: np.ndarray, ids: list[int]) -> dict[str, np.ndarray]:
    """Every statistic by its definition; the sums over the vocabulary in float64."""
    base, rl = base.astype(np.float64), rl.astype(np.float64)
    p, q = np.exp(base), np.exp(rl)
    log_m = np.log((p + q) / 2)
    at = np.arange(len(ids)), np.array(ids)
    top = np.arange(len(ids)), rl.argmax(1)
    return {
        "logp_base": base[at],
        "logp_rl": rl[at],
        "delta_logp": rl[at] - base[at],
        "entropy_base": -(p * base).sum(1),
        "entropy_rl": -(q * rl).sum(1),
        "kl_rl_base": (q * (rl - base)).sum(1),
        "kl_base_rl": (p * (base - rl)).sum(1),
        "js": ((p * (base - log_m)).sum(1) + (q * (rl - log_m)).sum(1)) / 2,
        "max_logp_base": base.max(1),
        "max_logp_rl": rl.max(1),
        "logp_base_of_rl_top1": base[top],
        "rank_base": (base > base[at][:, None]).sum(1),
        "rank_rl": (rl > rl[at][:, None]).sum(1),
        "rank_base_of_rl_top1": (base > base[top][:, None]).sum(1),
        "top1_id_base": base.argmax(1),
        "top1_id_rl": rl.argmax(1),
        "top1_agree": base.argmax(1) == rl.argmax(1),
    }


def near_tie(logp: np.ndarray, tolerance: float = 1e-4) -> np.ndarray:
    """Positions where two ids' log-probabilities lie within the tolerance: ranks may swap."""
    return (np.diff(np.sort(logp, axis=1), axis=1) < tolerance).any(axis=1)


def check_table(run: Run, corpus: Path) -> dict[str, float]:
    """Compare all rows; the largest difference of each column."""
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    table = {row["sample_id"]: row for row in run.dataset().to_table().to_pylist()}
    assert len(table) == len(rows)
    worst: dict[str, float] = {}
    forwards = (
        forward_by_length(rows, checkpoint_path("base")),
        forward_by_length(rows, checkpoint_path(rl_name())),
    )
    for row, base, rl in zip(rows, *forwards, strict=True):
        found = table[row["sample_id"]]
        assert found["status"] == "ok"
        assert found["response_ids"] == row["response_ids"]
        clear = ~(near_tie(base) | near_tie(rl))
        for name, expected in expected_columns(base, rl, row["response_ids"]).items():
            difference = np.abs(np.asarray(found[name], dtype=np.float64) - expected)
            if name in EXACT or name == "top1_agree":
                difference = difference[clear]
            worst[name] = max(worst.get(name, 0.0), float(difference.max(initial=0.0)))
    return worst


def train_as_the_readme_says(run: Run, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands and its code, on this run: weights, a lookup, a training."""
    room = Path(__file__).parents[2] / "dlogp_ray" / "weights"
    readme = (room / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Does it help?")[0]
    monkeypatch.chdir(corpus.parent)
    for command in re.findall(r"^dlogp (reweight demo-runs/.*)", section, re.MULTILINE):
        words = command.replace("demo-runs/demo-2000", run.uri).split()
        done = CliRunner().invoke(app, [*words, "--no-progress"])
        assert done.exit_code == 0, done.output
    # The sample that it shows is one of 2,000 problems.
    shown = next(row for row in map(json.loads, corpus.open()) if row["generator"] == "base")
    found: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        code = code.replace("demo-runs/demo-2000", run.uri)
        code = code.replace("demo-runs/corpus-2000.jsonl", str(corpus))
        exec(code.replace("base/100+230/0", shown["sample_id"]), found)
    assert found["batch"].shape == (1, 40)
    (last,) = (log for log in found["trainer"].state.log_history if "train_loss" in log)
    assert 0 < last["train_loss"] < 3  # nats a token


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[Run, Path, str]]:
    def run(problems: int) -> tuple[Run, Path, str]:
        printed = io.StringIO()
        console = Console(file=printed, width=120)
        monkeypatch.setattr(walkthrough, "for_people", lambda **_: console)
        last = partial(json.dump, fp=printed)
        monkeypatch.setattr(walkthrough, "for_programs", lambda document, **_: last(document))
        assert walkthrough.run_demo(tmp_path, problems) == 0
        result = json.loads(printed.getvalue().splitlines()[-1])
        return dlogp_ray.open_run(result["run"]), tmp_path / f"corpus-{problems}.jsonl", result

    return run


@pytest.mark.parametrize("problems", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_column_is_that_of_a_plain_forward_and_a_second_run_scores_nothing(
    demo: Any, problems: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, corpus, result = demo(problems)
    assert result["rows"] == 2 * problems
    assert run.sealed
    worst = check_table(run, corpus)
    assert store.exists(run.path("sparsity/all/report.html"))
    assert len(worst) == 17  # all statistics of the table
    # Two float32 forwards over 40 positions differ by rounding, 1e-6 and less a logit.
    assert {name: value for name, value in worst.items() if value > 1e-4} == {}

    train_as_the_readme_says(run, corpus, monkeypatch)
    _, _, again = demo(problems)
    assert again["units_scored"] == 0
    assert again["rows"] == result["rows"]
