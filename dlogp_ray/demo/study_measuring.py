"""Accuracy of a policy on held-out problems while it is trained."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dlogp_ray.demo.sampling import sample_policy
from dlogp_ray.demo.task import held_out_problems


class Measure(TrainerCallback):
    """One sample a held-out problem, at temperature 1, every few steps and at both ends.

    Attributes:
        accuracy: Training step -> share of right answers. Problems and random draws are the same in
            each measurement.
    """

    def __init__(self, tokenizer: Any, every: int, problems: int, seed: int) -> None:
        """Nothing is measured before the training begins."""
        self.tokenizer = tokenizer
        self.every = every
        self.problems = held_out_problems(problems, seed)
        self.seed = seed
        self.accuracy: dict[int, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the policy that it begins with."""
        self._measure(0, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the trainer after each optimiser step."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(state.global_step, kwargs["model"])

    def _measure(self, step: int, model: Any) -> None:
        training = model.training
        model.eval()
        rows = sample_policy(model, self.tokenizer, "policy", self.problems, 1, self.seed)
        model.train(training)
        self.accuracy[step] = sum(row["reward"] for row in rows) / len(rows)
