"""RL with verifiable rewards of an adapter (LoRA) on SmolLM2: TRL's GRPOTrainer, resumable."""

import logging
import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint
from trl.trainer.grpo_trainer import GRPOTrainer

from dlogp_ray.demo.rlvr import grpo_config
from dlogp_ray.demo.smollm2.base import WHEEL
from dlogp_ray.demo.smollm2.task import (
    MAX_RESPONSE_TOKENS,
    TEMPERATURE,
    last_number,
    training_problem,
)

logger = logging.getLogger(__name__)


def verifier_reward(
    completions: list[list[dict[str, str]]], answer: list[str], **columns: Any
) -> list[float | None]:
    """1.0 for each completion that the verifier accepts, else 0.0, in TRL's calling convention."""
    return [
        float(last_number(messages[0]["content"]) == right)
        for messages, right in zip(completions, answer, strict=True)
    ]


class Report(TrainerCallback):
    """A line of the log a step: what an hour's training says of itself."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called by the trainer after each step."""
        if logs and "reward" in logs:
            logger.info(
                "step %d of %d: %.0f %% right, %.1f tokens",
                state.global_step,
                state.max_steps,
                100 * float(logs["reward"]),
                float(logs["completions/mean_length"]),
            )


def train_adapter(
    base: Path,
    adapter: Path,
    work: Path,
    *,
    steps: int,
    save_every: int,
    prompts_per_step: int,
    samples_per_prompt: int,
    learning_rate: float,
    rank: int,
    seed: int,
) -> list[dict[str, float]]:
    """Train an adapter on the base's weights and save it as peft does.

    Pure RLVR: the reward is the verifier's alone, without a KL penalty or a reference policy, and
    each batch of rollouts is drawn from the current policy at the task's temperature and used once.

    Args:
        base: The base's checkpoint; it computes in float32.
        adapter: Folder to write.
        work: The trainer's checkpoints; a training that was cut off goes on from the last of them.
        steps: Optimiser steps in all.
        save_every: Steps between two checkpoints.
        prompts_per_step: Problems of a step.
        samples_per_prompt: Responses to each.
        learning_rate: At the start, AdamW, linear to zero.
        rank: Of the adapter, on every linear layer; its alpha is twice that.
        seed: Of everything drawn.

    Returns:
        Of each step, those before a cut too: `reward`, the share of right responses in its
        rollouts, and `step_time` in seconds.
    """
    rng = random.Random(seed)
    problems = [training_problem(rng) for _ in range(steps * prompts_per_step)]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        reward_funcs=verifier_reward,
        args=grpo_config(
            work,
            steps=steps,
            batch_size=prompts_per_step * samples_per_prompt,
            samples_per_prompt=samples_per_prompt,
            learning_rate=learning_rate,
            seed=seed,
            max_completion_length=MAX_RESPONSE_TOKENS,
            temperature=TEMPERATURE,
            save_strategy="steps",
            save_steps=save_every,
            save_total_limit=1,
            logging_strategy="steps",
            logging_steps=1,
        ),
        train_dataset=Dataset.from_dict(
            {
                "prompt": [problem.messages for problem in problems],
                "answer": [problem.answer for problem in problems],
            }
        ),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Report()],
    )
    # It prints the trainer's metrics, of which the log has what matters.
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(work) if work.exists() else None)
    model: Any = trainer.model
    # Not where this machine keeps it.
    model.peft_config["default"].base_model_name_or_path = WHEEL
    model.save_pretrained(adapter, save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)  # an empty form
    return [
        {key: float(log[key]) for key in ("reward", "step_time")}
        for log in trainer.state.log_history
        if "reward" in log
    ]
