"""The loops that the engine is measured against compute the same numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_rows
from transformers import AutoModelForCausalLM

from dlogp_ray.bench.naive import naive_logp, naive_statistics
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.policies.policy import Policy
from dlogp_ray.scoring.scorer import PairScorer
from dlogp_ray.scoring.unit import table_columns
from dlogp_ray.tables.scores import STATISTICS

TEXTS = [
    TokenSequence(np.array(row["prompt_ids"], np.int32), np.array(row["response_ids"], np.int32))
    for row in make_rows(11)
]


def test_naive_loops_and_engine_agree(policy_folders: dict[str, Path]) -> None:
    models = {n: AutoModelForCausalLM.from_pretrained(f) for n, f in policy_folders.items()}
    naive = naive_statistics(models["base"], models["rl"], TEXTS)
    policies = {n: Policy.load(resolve(n, str(f))) for n, f in policy_folders.items()}
    scored = PairScorer(policies, base="base", token_budget=128).score(TEXTS)
    for mine, theirs in zip(scored, naive, strict=True):
        columns = table_columns(mine, "rl", "base")
        assert theirs.keys() == set(STATISTICS)
        for name in STATISTICS:
            # two float32 computations of logits below 30 and divergences below 10
            np.testing.assert_allclose(columns[name], theirs[name].numpy(), atol=1e-4, err_msg=name)
    logp = naive_logp(models["rl"], TEXTS)
    for values, theirs in zip(logp, naive, strict=True):
        assert values.numpy() == pytest.approx(theirs["logp_rl"].numpy(), abs=0)


def test_heads_of_different_padding_are_compared_over_the_common_ids(
    policy_folders: dict[str, Path],
) -> None:
    base, rl = (AutoModelForCausalLM.from_pretrained(f) for f in policy_folders.values())
    wanted = naive_statistics(base, rl, TEXTS)
    rl.resize_token_embeddings(rl.config.vocab_size + 3, mean_resizing=False)
    for padded, plain in zip(naive_statistics(base, rl, TEXTS), wanted, strict=True):
        # The base is as it was; the RL policy gives some of its probability to the new ids.
        for name in ("logp_base", "entropy_base", "rank_base", "top1_id_base"):
            assert torch.equal(padded[name], plain[name])
        assert (padded["logp_rl"] < plain["logp_rl"]).all()
        assert (padded["top1_id_rl"] < base.config.vocab_size).all()
