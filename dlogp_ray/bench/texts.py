"""Made-up texts: random tokens, of lengths as the config says."""

import numpy as np

from dlogp_ray.config import BenchConfig
from dlogp_ray.policies.packing import TokenSequence

GROUP_PROMPT, GROUP_RESPONSES, GROUP_TOKENS = 512, 8, 128


def make_texts(config: BenchConfig, vocabulary: int) -> list[TokenSequence]:
    """``config.texts`` texts with prompts of their own."""
    rng = np.random.default_rng(config.seed)
    lengths = rng.integers(
        config.min_response_tokens, config.max_response_tokens, config.texts, endpoint=True
    )
    return [
        TokenSequence(*np.split(ids, [config.prompt_tokens]))
        for ids in (
            rng.integers(0, vocabulary, config.prompt_tokens + n, dtype=np.int32) for n in lengths
        )
    ]


def make_groups(config: BenchConfig, vocabulary: int) -> list[TokenSequence]:
    """Groups of 8 responses of 128 tokens on one prompt of 512 tokens."""
    rng = np.random.default_rng(config.seed + 1)
    texts = []
    for _ in range(config.groups):
        prompt = rng.integers(0, vocabulary, GROUP_PROMPT, dtype=np.int32)
        for _ in range(GROUP_RESPONSES):
            response = rng.integers(0, vocabulary, GROUP_TOKENS, dtype=np.int32)
            texts.append(TokenSequence(prompt, response))
    return texts
