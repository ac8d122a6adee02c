"""RL with verifiable rewards: TRL's GRPOTrainer on training problems, with checkpoints."""

import random
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from dlogp_ray.demo.task import MAX_RESPONSE_TOKENS, training_problem, verify


def verifier_reward(
    prompts: list[str], completions: list[str], **columns: Any
) -> list[float | None]:
    """1.0 for each completion that the verifier accepts, else 0.0, in TRL's calling convention."""
    return [float(verify(p, c)) for p, c in zip(prompts, completions, strict=True)]


class SaveCandidates(TrainerCallback):
    """Save the policy's weights and configs after every `interval` steps, and nothing else.

    The trainer's own checkpoints would carry optimiser states and pickled arguments.
    """

    def __init__(self, folder: Path, interval: int) -> None:
        """Nothing is written before training reaches the first multiple of `interval`."""
        self.folder = folder
        self.interval = interval
        self.step_of: dict[str, int] = {}

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Called by the trainer after each optimiser step."""
        if state.global_step % self.interval == 0 or state.global_step == state.max_steps:
            name = f"rl-step-{state.global_step:03d}"
            kwargs["model"].save_pretrained(self.folder / name)
            self.step_of[name] = state.global_step


def grpo_config(
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    samples_per_prompt: int,
    learning_rate: float,
    seed: int,
    **changes: Any,
) -> GRPOConfig:
    """Pure RLVR on a CPU: no KL penalty, each batch of rollouts is used once, nothing is saved.

    `changes` are further settings, or other values of these.
    """
    settings: dict[str, Any] = dict(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        num_generations=samples_per_prompt,
        max_completion_length=MAX_RESPONSE_TOKENS,
        temperature=1.0,
        beta=0.0,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        seed=seed,
        use_cpu=True,
        bf16=False,
        # Recomputing activations and gathering metrics costs more than it saves at this size.
        activation_checkpointing=False,
        # The trainer writes this into the policy's config; a policy to sample from wants its cache.
        use_cache=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
    )
    return GRPOConfig(**settings | changes)


def train_rlvr(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    steps: int,
    save_every: int,
    prompts_per_step: int,
    samples_per_prompt: int,
    learning_rate: float,
    seed: int,
) -> dict[str, int]:
    """Train `model` in place with GRPO and save it on the way as `<folder>/rl-step-<step>`.

    Pure RLVR: the reward is the verifier's alone, without a KL penalty or a reference policy, and
    each batch of rollouts is drawn at temperature 1 from the current policy and used once.

    Returns:
        The training step of each folder written, by its name and in the order of training; the
        last step is always among them.
    """
    candidates = SaveCandidates(folder, save_every)
    rng = random.Random(seed)
    prompts = [training_problem(rng).prompt for _ in range(steps * prompts_per_step)]
    config = grpo_config(
        folder / "trainer",
        steps=steps,
        batch_size=prompts_per_step * samples_per_prompt,
        samples_per_prompt=samples_per_prompt,
        learning_rate=learning_rate,
        seed=seed,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=verifier_reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[candidates],
    )
    # It prints the trainer's metrics, which belong to nobody here, to standard output.
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return candidates.step_of
