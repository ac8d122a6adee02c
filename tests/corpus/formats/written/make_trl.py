"""A step of TRL's GRPO on a tiny policy, for the completions that it writes.

    PYTHONPATH=tests python tests/corpus/formats/written/make_trl.py

Conversations as prompts; the reward function keeps the ids that were sampled, to compare with.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from conftest import make_policy_folder, make_tokenizer
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

HERE = Path(__file__).parent
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)
seen: list[dict[str, Any]] = []


def digits(prompts: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """How many digits an answer has; what it is asked about is kept."""
    for prompt, completion in zip(prompts, completion_ids, strict=True):
        seen.append({"asked": prompt[-1]["content"], "response_ids": completion})
    return [float(sum(2 <= token <= 11 for token in ids)) for ids in completion_ids]


def main() -> None:
    """Write both files."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer()
        tokenizer.chat_template = TEMPLATE
        model = AutoModelForCausalLM.from_pretrained(make_policy_folder(Path(folder) / "policy", 0))
        asked = [[{"role": "user", "content": text}] for text in ("1+2", "34+5", "6", "a+b")]
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[digits],
            args=GRPOConfig(
                output_dir=folder,
                max_steps=1,
                per_device_train_batch_size=8,
                num_generations=2,
                max_completion_length=8,
                use_cpu=True,
                bf16=False,
                report_to="none",
                logging_steps=1,
                log_completions=True,
                save_strategy="no",
            ),
            train_dataset=Dataset.from_dict({"prompt": asked}),
            processing_class=tokenizer,
        )
        trainer.train()
        (written,) = Path(folder, "completions").glob("*.parquet")
        (HERE / "trl" / written.name).write_bytes(written.read_bytes())
    (HERE / "trl" / "seen.json").write_text(json.dumps(seen) + "\n")


if __name__ == "__main__":
    (HERE / "trl").mkdir(exist_ok=True)
    main()
