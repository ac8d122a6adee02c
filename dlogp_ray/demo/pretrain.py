"""Pre-training of the base policy: plain next-token prediction on noisy worked solutions."""

import random
import sys

import torch
from rich.console import Console
from rich.progress import track
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from dlogp_ray.demo.task import noisy_solution, training_problem

MAX_POSITIONS = 64


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A freshly initialised float32 Llama of about 0.79 M parameters over `tokenizer`'s ids."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    # What a plain `generate` does with the saved folder: sample from the policy itself, with the
    # whole vocabulary (the library's own default keeps the 50 likeliest tokens).
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def training_batch(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int
) -> dict[str, torch.Tensor]:
    """`size` prompts with noisy solutions, each ended by eos and padded on the right.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each [size, longest]; padding has label -100.
    """
    problems = [training_problem(rng) for _ in range(size)]
    texts = [p.prompt + noisy_solution(p, rng) + tokenizer.eos_token for p in problems]
    batch = tokenizer(
        texts,
        padding=True,
        padding_side="right",
        return_tensors="pt",
        return_token_type_ids=False,
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels}


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> LlamaForCausalLM:
    """Train a base policy from scratch: AdamW, warm-up over a tenth of the steps, cosine to zero.

    The loss is the mean negative log-likelihood in nats over every token of prompt and response.
    """
    model = build_model(tokenizer, seed)
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95))
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    progress = track(
        range(steps),
        description="pre-training",
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    for _ in progress:
        loss = model(**training_batch(tokenizer, rng, batch_size)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model
