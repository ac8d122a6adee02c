"""Scores do not depend on which sequences shared a forward pass, over the demo corpus."""

import random
from typing import Any

import numpy as np
import pytest

from dlogp_ray.demo.pair import checkpoint_path, rl_name
from dlogp_ray.demo.sampling import sample_corpus
from dlogp_ray.demo.task import held_out_problems
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.policies.policy import Policy
from dlogp_ray.scoring.scorer import PairScorer


@pytest.mark.parametrize("problems", [60, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_other_batches_and_another_order_change_nothing_beyond_1e_5(problems: int) -> None:
    names = {"base": "base", "rl": rl_name()}
    sequences = [
        TokenSequence(np.array(row["prompt_ids"]), np.array(row["response_ids"]))
        for name in names.values()
        for row in sample_corpus(checkpoint_path(name), held_out_problems(problems, 0), 1, seed=0)
    ]
    policies = {n: Policy.load(resolve(n, str(checkpoint_path(p)))) for n, p in names.items()}

    def score(token_budget: int, order: list[int]) -> list[Any]:
        scorer = PairScorer(policies, base="base", token_budget=token_budget)
        scored = scorer.score([sequences[i] for i in order])
        return [one for _, one in sorted(zip(order, scored, strict=True), key=lambda p: p[0])]

    order = list(range(len(sequences)))
    shuffled = random.Random(0).sample(order, len(order))
    whole = score(8_192, order)
    # 1e-5 is the bound that users are promised. Chunks of 16 tokens, which no job has, run through
    # other matrix kernels; all lie within 2.5e-5 of a float64 forward, so two within 5e-5.
    for other, bound in (
        (score(8_192, shuffled), 1e-5),
        (score(512, shuffled), 1e-5),
        (score(16, order), 5e-5),
    ):
        for one, two in zip(whole, other, strict=True):
            for policy, columns in one.items():
                for name, values in columns.items():
                    if name == "rank" or ("top1" in name and values.dtype.kind in "ib"):
                        continue  # exact away from ties; held to the plain forward elsewhere
                    np.testing.assert_allclose(two[policy][name], values, atol=bound, rtol=0)
