"""Weights on the fly in TRL's GRPO: those of a table, and the loss that they make."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from plain_logps import logps
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from dlogp_ray.corpus.rows import RowRules, check_rows
from dlogp_ray.errors import Refused
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Policy
from dlogp_ray.scoring.scorer import PairScorer
from dlogp_ray.scoring.unit import score_unit
from dlogp_ray.weights.rows import Rows, Weighing, WholeTable, first_pass, weigh_rows
from dlogp_ray.weights.trl.grpo import ReweightedGRPOTrainer
from dlogp_ray.weights.whole import Counts, quantile, quantile_upper

# Every prompt twice; sixteen completions.
PROMPTS = ["1+2=", "34+5=", "6=", "a+b", "77", "9+9=", "bcd", "0"]


def reward(completions: list[str], **columns: Any) -> list[float | None]:
    return [float(text.count("1") + 0.1 * len(text)) for text in completions]


def config(folder: Path, **more: Any) -> GRPOConfig:
    fields: dict[str, Any] = {
        "output_dir": str(folder / "trainer"),
        "max_steps": 1,
        "per_device_train_batch_size": 16,
        "num_generations": 2,
        "max_completion_length": 12,
        "beta": 0.0,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cache": True,
        "logging_steps": 1,
    }
    return GRPOConfig(**(fields | more))


class Watched(ReweightedGRPOTrainer):
    """Keeps the batches that it generates, and the losses of its steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.generated: list[dict[str, Any]] = []
        self.seen: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.generated.append(super()._generate_and_score_completions(inputs))
        return dict(self.generated[-1])

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        current = self._scored(inputs, entropy=False)[0]
        loss = super()._compute_loss(model, inputs)
        self.seen.append({**inputs, "loss": loss.detach(), "logp_current": current})
        return loss


def watched(model: Any, tokenizer: Any, folder: Path, schemes: Any, **more: Any) -> Watched:
    mean_one = more.pop("mean_one", False)
    made = Watched(
        model,
        reward_funcs=reward,
        args=config(folder, **more),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
        schemes=schemes,
        mean_one=mean_one,
    )
    made.train()
    return made


def as_rows(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The rollouts of a batch, as a corpus has them."""
    rows = []
    for index in range(len(batch["advantages"])):
        prompt = batch["prompt_ids"][index][batch["prompt_mask"][index].bool()]
        response = batch["completion_ids"][index][batch["completion_mask"][index].bool()]
        rows.append(
            {
                "sample_id": f"s{index}",
                "group_id": f"g{index // 2}",
                "prompt_ids": prompt.tolist(),
                "response_ids": response.tolist(),
            }
        )
    return rows


def table_weights(rows: list[dict[str, Any]], folder: Path, how: Weighing) -> list[list[float]]:
    """Weights of rollouts as the two jobs make them: scored by the policy, then weighed."""
    rules = RowRules(vocab_size=24, max_tokens=None, carry={})
    unit = check_rows(list(enumerate(rows)), "corpus", rules, lambda: pytest.fail("no text"))
    scorer = PairScorer(
        {"base": Policy.load(resolve("base", str(folder)))}, base=None, token_budget=256
    )
    scores = score_unit(unit, scorer, base=None, compared=["base"], steps={}, carry={})
    found = Rows.of(scores, how)
    counts, log_ppl, rewards = first_pass(found, how)
    threshold = None
    if len(counts):
        upper, rank = quantile_upper(counts, 0.3)
        threshold = quantile(upper, Counts.of(found.entropies(), upper), rank)
    whole = WholeTable(threshold=threshold, log_ppl=log_ppl, reward=rewards)
    weights: list[list[float]] = weigh_rows(found, how, whole)[0]["loss_weights"].to_pylist()
    return weights


@pytest.mark.parametrize(
    "scheme",
    [
        "low_prob",
        "dominate",
        {"scheme": "ppl", "alpha": 0.1, "low": 0.8, "high": 1.2},
        {"scheme": "entropy_top", "rho": 0.3},
        {"scheme": "rsi_band", "low": 0.5, "high": 2.0},
    ],
    ids=["low_prob", "dominate", "ppl", "entropy_top", "rsi_band"],
)
def test_a_tables_weights_are_those_on_the_fly(
    scheme: Any, model: Any, tokenizer: Any, policy_folders: dict[str, Path], tmp_path: Path
) -> None:
    made = watched(model, tokenizer, tmp_path, [scheme])
    (batch,) = made.generated
    rows = as_rows(batch)
    how = Weighing(tuple(made.schemes), policy="base", rl="base")
    table = table_weights(rows, policy_folders["base"], how)
    assert len({len(row["response_ids"]) for row in rows}) > 2
    for row, flown, weights in zip(rows, batch["loss_weights"], table, strict=True):
        found = flown[: len(row["response_ids"])].numpy()
        np.testing.assert_allclose(found, weights, rtol=0, atol=1e-6)
        assert set(flown[len(row["response_ids"]) :].tolist()) <= {1.0}


def test_the_loss_is_weighted_token_by_token(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    made = watched(
        model,
        tokenizer,
        tmp_path,
        ["low_prob", {"scheme": "entropy_top", "rho": 0.3}],
        mean_one=True,
    )
    (step,) = made.seen
    mask = step["completion_mask"].bool()
    weights = step["loss_weights"].double()
    mean = (weights * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    weights = weights / torch.where(mean > 0, mean, 1.0)
    # The ratio is 1 at the first step: −Σ A·w / Σ 1.
    expected = -(step["advantages"].double()[:, None] * weights * mask).sum() / mask.sum()
    assert float(step["loss"]) == pytest.approx(float(expected), abs=1e-6)


def test_alpha_0_is_trls_own_training(
    model: Any, tokenizer: Any, policy_folders: dict[str, Path], tmp_path: Path
) -> None:
    plain = type(model).from_pretrained(policy_folders["base"], dtype=torch.float32)
    watched(model, tokenizer, tmp_path, [{"scheme": "low_prob", "alpha": 0.0}], max_steps=3)
    theirs = GRPOTrainer(
        plain,
        reward_funcs=reward,
        args=config(tmp_path, max_steps=3),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
    )
    theirs.train()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_old_and_current_policy_are_those_of_the_batch_and_the_step(
    model: Any, tokenizer: Any, policy_folders: dict[str, Path], tmp_path: Path
) -> None:
    """A batch that is used three times: weights follow how far the policy has moved."""
    schemes = [
        {"scheme": "divergence", "scale": 1.0, "alpha": 4.0},
        {"scheme": "future_kl", "half_life": 4.0, "low": 0.5, "high": 2.0, "max_ratio": 3.0},
    ]
    made = watched(
        model,
        tokenizer,
        tmp_path,
        schemes,
        max_steps=3,
        num_iterations=3,
        learning_rate=1e-1,
        optim="sgd",
    )
    assert len(made.generated) == 1
    assert len(made.seen) == 3
    old = type(model).from_pretrained(policy_folders["base"], dtype=torch.float32)
    (batch,) = made.generated
    by_tokens = {
        (tuple(row["prompt_ids"]), tuple(row["response_ids"])): row for row in as_rows(batch)
    }
    for step in made.seen:
        for row, found in zip(as_rows(step), step["logp_old"], strict=True):
            assert (tuple(row["prompt_ids"]), tuple(row["response_ids"])) in by_tokens
            with torch.no_grad():
                expected = logps(old, row).float()
            # float32 in batches against float64 one by one: the noise floor of such scores.
            torch.testing.assert_close(found[: len(expected)], expected, rtol=0, atol=1e-4)
    moved = []
    for step in made.seen:
        mask = step["completion_mask"].bool()
        shift = torch.where(mask, (step["logp_current"] - step["logp_old"]).double(), 0.0)
        ratio, advantage = shift.exp(), step["advantages"].double()[:, None]
        weights = 1 + 1 / (1 + torch.exp(-4 * (ratio - 1 - shift))) - 0.5
        out = (advantage < 0) & (ratio > 3)
        future = torch.zeros_like(shift)
        for t in range(shift.size(1) - 1, -1, -1):
            after = future[:, t + 1] if t + 1 < shift.size(1) else 0.0
            future[:, t] = torch.where(out[:, t], 0.0, shift[:, t]) + 2 ** (-1 / 4) * after
        weights = weights * torch.where(out, 1.0, future.exp().clip(0.5, 2.0))
        term = torch.min(ratio * advantage * weights, ratio.clip(0.8, 1.2) * advantage * weights)
        expected = float(-(term * mask).sum() / mask.sum())
        # Log-probabilities of two float32 passes, about 1e-6 apart, in exponents of sums.
        assert float(step["loss"]) == pytest.approx(expected, abs=2e-5)
        moved.append(float((weights - 1).abs()[mask].max()))
    assert moved[0] == 0 < 0.05 < moved[1] < moved[2]


@pytest.mark.parametrize(
    ("schemes", "said"),
    [
        ([], "ReweightedGRPOTrainer:\n  schemes: expected 1 or more"),
        (["delta"], "dlogp reweight"),
        (["lowprob"], r"ReweightedGRPOTrainer:\n  schemes \(item 1\): .*low_prob"),
        ([{"scheme": "low_prob", "alpha": -1}], "alpha: expected 0 or more .got -1"),
        (["low_prob", "low_prob"], "one is there twice"),
    ],
)
def test_schemes_that_cannot_be_are_refused(
    schemes: Any, said: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=said):
        ReweightedGRPOTrainer(
            model,
            reward_funcs=reward,
            args=config(tmp_path),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=tokenizer,
            schemes=schemes,
        )
