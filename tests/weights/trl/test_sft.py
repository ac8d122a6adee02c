"""A table's weights in TRL's SFT: the loss of one batch by hand, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_logps import Rows, logps
from trl.trainer.sft_config import SFTConfig
from weights_tables import made_up_weights, weights_row

from dlogp_ray.errors import Refused
from dlogp_ray.weights.table import PerToken, WrongTokens, load_weights
from dlogp_ray.weights.trl.sft import WeightedSFTTrainer

WEIGHTS = {
    "a/0": [1.0, 0.5, 2.0, 0.0],
    "a/1": [3.0, 1.0],
    "b/0": [0.25, 1.5, 1.0],
    "b/1": [1.0, 0.0, 0.0, 4.0, 0.5],
}


@pytest.fixture
def weights(rollouts: Rows, tmp_path: Path) -> PerToken:
    rows = [
        weights_row(
            row["sample_id"],
            row["response_ids"],
            WEIGHTS[row["sample_id"]],
            prompt_ids=row["prompt_ids"],
        )
        for row in rollouts
    ]
    made_up_weights(str(tmp_path / "weights"), [rows])
    return load_weights(str(tmp_path / "weights"), cache=tmp_path / "cache")


def trainer(
    model: Any, tokenizer: Any, folder: Path, rollouts: Rows, weights: PerToken, **more: Any
) -> WeightedSFTTrainer:
    fields: dict[str, Any] = {
        "output_dir": str(folder / "trainer"),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    missing = more.pop("missing", "error")
    return WeightedSFTTrainer(
        model,
        rollouts=rollouts,
        weights=weights,
        missing=missing,
        args=SFTConfig(**(fields | more)),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_one_step_is_the_one_by_hand(
    masked: bool,
    accumulated: int,
    model: Any,
    tokenizer: Any,
    rollouts: Rows,
    weights: PerToken,
    tmp_path: Path,
) -> None:
    if masked:
        rollouts[3]["response_mask"] = [1, 1, 1, 0, 1]  # the token that weighs 4
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in rollouts:
        mask = torch.tensor(row.get("response_mask", [1] * len(row["response_ids"])))
        weight = torch.tensor(WEIGHTS[row["sample_id"]], dtype=torch.float64)
        total = total - (weight * mask * logps(model, row)).sum()
        tokens += int(mask.sum())
    loss = total / tokens
    loss.backward()
    expected = {name: p.detach() - p.grad for name, p in model.named_parameters()}
    size = {name: float(p.grad.abs().max()) for name, p in model.named_parameters()}
    model.zero_grad()
    made = trainer(
        model,
        tokenizer,
        tmp_path,
        rollouts,
        weights,
        per_device_train_batch_size=4 // accumulated,
        gradient_accumulation_steps=accumulated,
    )
    made.train()
    assert made.state.log_history[0]["loss"] == pytest.approx(float(loss), abs=1e-4 / 2)
    for name, parameter in model.named_parameters():
        # As in test_replay: float32 gradients, and one rounding of the parameter.
        tolerance = 1e-5 * size[name] + 2**-23 * float(expected[name].abs().max())
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=tolerance)


def test_samples_that_the_table_does_not_have_weigh_1_where_asked(
    model: Any, tokenizer: Any, rollouts: Rows, weights: PerToken, tmp_path: Path
) -> None:
    rollouts[0]["sample_id"] = "c/0"
    with pytest.raises(Refused, match="no loss_weights for sample c/0"):
        trainer(model, tokenizer, tmp_path, rollouts, weights)
    made = trainer(model, tokenizer, tmp_path, rollouts, weights, missing="one")
    assert made.train_dataset[0]["loss_weights"] == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def test_what_does_not_fit_is_refused(
    model: Any, tokenizer: Any, rollouts: Rows, weights: PerToken, tmp_path: Path
) -> None:
    def changed(**change: Any) -> Rows:
        return [rollouts[0], {**rollouts[1], **change}]

    for change, said in [
        ({"response_ids": [3, 1, 1]}, "sample a/1: its response has 3 tokens"),
        ({"response_ids": [2, 1]}, "sample a/1: token 0 of its response is 2"),
        ({"prompt_ids": [5, 6]}, "sample a/1: its prompt of 2 tokens"),
    ]:
        with pytest.raises(WrongTokens, match=said):
            trainer(model, tokenizer, tmp_path, changed(**change), weights)
    with pytest.raises(Refused, match="row 1 has no prompt_ids"):
        trainer(model, tokenizer, tmp_path, changed(prompt_ids=None), weights)
    with pytest.raises(Refused, match="response_mask has 1 value for 2 tokens"):
        trainer(model, tokenizer, tmp_path, changed(response_mask=[1]), weights)
    with pytest.raises(Refused, match="sample a/0 has 7 tokens, and max_length is 6"):
        trainer(model, tokenizer, tmp_path, rollouts, weights, max_length=6)
    with pytest.raises(Refused, match="rollouts: there are none"):
        trainer(model, tokenizer, tmp_path, [], weights)
    logps = dataclasses.replace(weights, column="logp_base")
    with pytest.raises(Refused, match="expected weights, as load_weights opens them"):
        trainer(model, tokenizer, tmp_path, rollouts, logps)
    with pytest.raises(ValueError, match="packing=False"):
        trainer(model, tokenizer, tmp_path, rollouts, weights, loss_type="dft")
