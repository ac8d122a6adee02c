"""A table's weights in TRL's GRPO: the loss and the gradient of one batch, by hand."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_logps import Rows, logps
from trl.trainer.grpo_config import GRPOConfig
from weights_tables import made_up_weights, weights_row

from dlogp_ray.errors import Refused
from dlogp_ray.weights.table import PerToken, UnknownSample, WrongTokens, load_weights
from dlogp_ray.weights.trl.replay import ReplayGRPOTrainer

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
    made_up_weights(str(tmp_path / "weights"), [rows[:1], rows[1:]])
    return load_weights(str(tmp_path / "weights"), cache=tmp_path / "cache")


def trainer(model: Any, tokenizer: Any, folder: Path, **more: Any) -> ReplayGRPOTrainer:
    """One step of plain gradient descent with learning rate 1 on all four rollouts."""
    config = GRPOConfig(
        output_dir=str(folder / "trainer"),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        beta=0.0,
        loss_type="bnpo",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        weight_decay=0.0,
        max_grad_norm=0.0,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
    )
    return ReplayGRPOTrainer(model, args=config, processing_class=tokenizer, **more)


def by_hand(model: Any, rollouts: Rows, weights: dict[str, list[float]]) -> torch.Tensor:
    """−Σ A·w·log p / Σ 1: the gradient of the loss is this one's, whose ratio is 1."""
    # Rewards 1 and 0: mean 1/2, deviation over n − 1 √½; TRL adds 1e-4 to it.
    size = 0.5 / (0.5**0.5 + 1e-4)
    total = torch.zeros((), dtype=torch.float64)
    for row in rollouts:
        advantage = size if row["reward"] else -size
        weight = torch.tensor(weights[row["sample_id"]], dtype=torch.float64)
        total = total - (advantage * weight * logps(model, row)).sum()
    return total / sum(len(row["response_ids"]) for row in rollouts)


@pytest.mark.parametrize("weighted", [True, False])
def test_one_step_is_the_one_by_hand(
    weighted: bool, model: Any, tokenizer: Any, rollouts: Rows, weights: PerToken, tmp_path: Path
) -> None:
    ones = {name: [1.0] * len(some) for name, some in WEIGHTS.items()}
    by_hand(model, rollouts, WEIGHTS if weighted else ones).backward()
    expected = {name: p.detach() - p.grad for name, p in model.named_parameters()}
    size = {name: float(p.grad.abs().max()) for name, p in model.named_parameters()}
    model.zero_grad()
    made = trainer(
        model, tokenizer, tmp_path, rollouts=rollouts, weights=weights if weighted else None
    )
    made.train()
    for name, parameter in model.named_parameters():
        # float32 in the trainer, float64 by hand; gradients differ by some units in the last place
        # of the largest, and parameters by one of their own.
        tolerance = 1e-5 * size[name] + 2**-23 * float(expected[name].abs().max())
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=tolerance)
    # With a ratio of 1, the loss itself is −Σ A·w / Σ 1.
    used = WEIGHTS if weighted else ones
    size_of = 0.5 / (0.5**0.5 + 1e-4)
    sums = {row["sample_id"]: sum(used[row["sample_id"]]) for row in rollouts}
    loss = -size_of * (sums["a/0"] - sums["a/1"] - sums["b/0"] + sums["b/1"]) / 14
    assert made.state.log_history[0]["loss"] == pytest.approx(loss, abs=1e-4 / 2)  # it is rounded


def test_ratios_are_to_the_policy_that_generated(
    model: Any, tokenizer: Any, rollouts: Rows, tmp_path: Path
) -> None:
    # log p of the generator is a nat below the model's: ratios e, clipped to 1.2 where A > 0.
    rows = []
    for row in rollouts:
        with torch.no_grad():
            old = (logps(model, row) - 1).tolist()
        rows.append(
            weights_row(row["sample_id"], row["response_ids"], old, prompt_ids=row["prompt_ids"])
        )
    made_up_weights(str(tmp_path / "old"), [rows])
    opened = load_weights(str(tmp_path / "old"), cache=tmp_path / "cache")
    old_logps = dataclasses.replace(opened, column="logp_base")
    made = trainer(model, tokenizer, tmp_path, rollouts=rollouts, old_logps=old_logps)
    made.train()
    size, e = 0.5 / (0.5**0.5 + 1e-4), 2.718281828
    loss = -size * (1.2 * (4 + 5) - e * (2 + 3)) / 14
    assert made.state.log_history[0]["loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"response_ids": [8, 9, 2, 2, 1]}, WrongTokens, "sample a/0: its response has 5 tokens"),
        ({"response_ids": [8, 10, 2, 1]}, WrongTokens, "sample a/0: token 1 of its response is 10"),
        ({"prompt_ids": [5, 6]}, WrongTokens, "sample a/0: its prompt of 2 tokens"),
        ({"sample_id": "c/0"}, UnknownSample, "no loss_weights for sample c/0"),
    ],
    ids=["length", "tokens", "prompt", "unknown"],
)
def test_rollouts_that_are_not_the_tables_are_refused(
    change: dict[str, Any],
    error: type[Exception],
    said: str,
    model: Any,
    tokenizer: Any,
    rollouts: Rows,
    weights: PerToken,
    tmp_path: Path,
) -> None:
    rollouts[0] |= change
    made = trainer(model, tokenizer, tmp_path, rollouts=rollouts, weights=weights)
    with pytest.raises(error, match=said):
        made.train()


def test_rows_that_cannot_be_replayed_are_refused(
    model: Any, tokenizer: Any, rollouts: Rows, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="row 1 has no reward"):
        trainer(model, tokenizer, tmp_path, rollouts=[rollouts[0], {**rollouts[1], "reward": None}])
    with pytest.raises(Refused, match="sample a/1 masks tokens of its response"):
        trainer(
            model,
            tokenizer,
            tmp_path,
            rollouts=[rollouts[0], {**rollouts[1], "response_mask": [1, 0]}],
        )
    with pytest.raises(Refused, match="num_generations=2"):
        trainer(model, tokenizer, tmp_path, rollouts=rollouts[1:3])


def test_what_is_left_of_a_group_is_told(
    model: Any, tokenizer: Any, rollouts: Rows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(model, tokenizer, tmp_path, rollouts=rollouts[:3])
    assert len(made.train_dataset) == 1
    assert "1 rollouts are not trained on" in caplog.text
