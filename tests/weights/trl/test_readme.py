"""The trainers' README is run, from the top, as a reader would run it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_logps import logps
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig

import dlogp_ray
from dlogp_ray import weights
from dlogp_ray.demo.pair import checkpoint_path
from dlogp_ray.weights.trl.sft import WeightedSFTTrainer

README = Path(weights.__file__).with_name("README.md").read_text(encoding="utf-8")
README = README.partition("\n## Weights in trainers\n")[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of transformers, for TRL 1.16
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What its code has made: name -> value, in a folder of its own."""
    folder = tmp_path_factory.mktemp("readme")
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DLOGP_CACHE", str(folder / "cache"))
        for code in re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
            code = code.replace('"report_to": "none"', '"report_to": "none", "logging_steps": 1')
            exec(code, found)
        yield found


def first_log(trainer: Any, name: str) -> float:
    return next(float(log[name]) for log in trainer.state.log_history if name in log)


def test_it_trains(ran: dict[str, Any]) -> None:
    # Replay: 32 groups of 8 are four batches of 64.
    for name in ("replay", "on_the_fly", "dpo", "kto"):
        assert ran[name].state.global_step == 4, name
    assert first_log(ran["sft"], "loss") > 0
    # The first step's policy is the one that was scored: no ratio is clipped, and it is its own
    # reference: −log σ(0) in DPO, 1 − σ(0) in KTO.
    assert first_log(ran["replay"], "clip_ratio/region_mean") == 0
    assert first_log(ran["dpo"], "loss") == pytest.approx(0.6931, abs=1e-4)
    assert first_log(ran["kto"], "loss") == pytest.approx(0.5, abs=1e-4)


def test_the_loss_of_one_batch_is_the_one_by_hand(ran: dict[str, Any], tmp_path: Path) -> None:
    """From the two checkpoints alone: Δlog p by plain passes, weights, and the mean over tokens."""
    base, rl = (
        AutoModelForCausalLM.from_pretrained(ran[name], dtype=torch.float32)
        for name in ("BASE", "RL")
    )
    rows = [row for row in ran["rollouts"] if row["reward"]][:12]
    total = plain = 0.0
    tokens = 0
    with torch.no_grad():
        for row in rows:
            old, new = logps(base, row).numpy(), logps(rl, row).numpy()
            weight = np.exp(new - old).clip(0.5, 2)
            total -= float((weight / weight.mean() * old).sum())
            plain -= float(old.sum())
            tokens += len(old)
    assert abs(total - plain) / tokens > 0.005  # the weights change it by far more than rounding
    trainer = WeightedSFTTrainer(
        base,
        rollouts=rows,
        weights=dlogp_ray.load_weights(f"{ran['scored'].run}/weights/delta"),
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=len(rows),
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
        ),
        processing_class=AutoTokenizer.from_pretrained(checkpoint_path("base")),
    )
    trainer.train()
    # Logged with four digits; float32 passes of other batches differ by 1e-6.
    assert first_log(trainer, "loss") == pytest.approx(total / tokens, abs=1e-4 / 2 + 1e-5)
