"""Samples of a demo policy on given problems, as the rows of a corpus, with verifier rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dlogp_ray.demo.task import MAX_RESPONSE_TOKENS

# Wide enough that the per-step overhead of `generate` is small, narrow enough for a laptop's cache.
BATCH_SIZE = 512


class Question(Protocol):
    """What a policy can be asked: a problem of one of the demo's tasks."""

    @property
    def prompt(self) -> str:
        """The question, for people."""

    @property
    def group_id(self) -> str:
        """Its identity; two problems have different ones."""

    def prompt_ids(self, tokenizer: Any) -> list[int]:
        """What the policy is given."""

    def accepts(self, response: str) -> bool:
        """Whether a response, without special tokens, is right."""


def sample_corpus(
    checkpoint: str | Path,
    problems: Sequence[Question],
    samples_per_problem: int,
    seed: int,
    temperature: float = 1.0,
    max_tokens: int = MAX_RESPONSE_TOKENS,
) -> list[dict[str, Any]]:
    """Draw responses of one policy from its full-vocabulary distribution, and grade them.

    Args:
        checkpoint: a policy's folder; the folder's name is the rows' `generator`.
        problems: the problems, each at most once, so that every `sample_id` is unique.
        samples_per_problem: independent responses to each problem.
        seed: of the draws; torch's global random state is left as it was.
        temperature: divides the logits, > 0.
        max_tokens: of a response, the end-of-sequence token included.

    Returns:
        One row a response, problem by problem: `sample_id` ("base/347+589/0"), `prompt_ids` and
        `response_ids` (lists of ints; the latter ends with the end-of-sequence token unless the
        response was cut at `max_tokens`), `prompt` and `response` (text without special
        tokens), `generator`, `temperature`, `top_p` (always 1), `group_id` ("347+589") and
        `reward` (1.0 where the verifier accepts the response, else 0.0).

    Raises:
        ValueError: a problem occurs twice.
    """
    folder = Path(checkpoint)
    return sample_policy(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
        folder.name,
        problems,
        samples_per_problem,
        seed,
        temperature,
        max_tokens,
    )


def sample_policy(
    # Any: the library's own annotations do not let `generate` be called.
    model: Any,
    tokenizer: Any,
    generator: str,
    problems: Sequence[Question],
    samples_per_problem: int,
    seed: int,
    temperature: float = 1.0,
    max_tokens: int = MAX_RESPONSE_TOKENS,
) -> list[dict[str, Any]]:
    """`sample_corpus` of a policy in memory; `generator` is its name in the rows."""
    if len(set(problems)) < len(problems):
        raise ValueError("expected distinct problems, since they make the sample ids; one is twice")
    tasks = [(problem, i) for problem in problems for i in range(samples_per_problem)]
    rows = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(tasks), BATCH_SIZE):
            batch = tasks[start : start + BATCH_SIZE]
            prompts = [problem.prompt_ids(tokenizer) for problem, _ in batch]
            padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
            sequences = model.generate(
                **padded,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_tokens,
            )
            responses = [
                _up_to_eos(ids, tokenizer.eos_token_id)
                for ids in sequences[:, padded["input_ids"].shape[1] :].tolist()
            ]
            texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
            for (problem, i), prompt_ids, response_ids, response in zip(
                batch, prompts, responses, texts, strict=True
            ):
                rows.append(
                    {
                        "sample_id": f"{generator}/{problem.group_id}/{i}",
                        "prompt_ids": prompt_ids,
                        "response_ids": response_ids,
                        "prompt": problem.prompt,
                        "response": response,
                        "generator": generator,
                        "temperature": temperature,
                        "top_p": 1.0,
                        "group_id": problem.group_id,
                        "reward": float(problem.accepts(response)),
                    }
                )
    return rows


def _up_to_eos(ids: list[int], eos_token_id: int) -> list[int]:
    """`ids` up to and including the first end-of-sequence token; all of them if there is none."""
    return ids[: ids.index(eos_token_id) + 1] if eos_token_id in ids else ids
