"""Weights in verl's own code, in an environment that has verl: run by test_other_trainers.py.

PYTHONPATH=.:tests python tests/trainers/verl_check.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
from weights_tables import made_up_weights, weights_row

from dlogp_ray.errors import Refused
from dlogp_ray.weights.table import load_weights
from dlogp_ray.weights.verl import loss_weights, register_reweighted_loss, weighted_advantages

folder = Path(sys.argv[1])
RESPONSES = {"p/0": [21, 22, 23, 24], "p/1": [31, 32]}
WEIGHTS = {"p/0": [0.5, 1.0, 2.0, 0.0], "p/1": [1.5, 0.25]}
made_up_weights(
    str(folder / "w"),
    [
        [
            weights_row(name, RESPONSES[name], WEIGHTS[name], prompt_ids=[11, 12])
            for name in RESPONSES
        ]
    ],
)
weights = load_weights(str(folder / "w"), cache=folder / "cache")

from verl.protocol import DataProto  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.trainer.ppo.ray_trainer import compute_advantage  # noqa: E402
from verl.workers.config import ActorConfig  # noqa: E402

# A row of the dataset, twice, as verl repeats it for two rollouts.
one = DataProto.from_single_dict(
    {
        "dummy_tensor": torch.zeros(1, 1, dtype=torch.uint8),
        "extra_info": np.array([{"sample_id": "p"}], dtype=object),
        "uid": np.array(["u0"], dtype=object),
    }
)
columns = one.repeat(repeat_times=2, interleave=True).non_tensor_batch
responses = torch.tensor([[21, 22, 23, 24], [31, 32, 0, 0]])
prompts = torch.tensor([[0, 11, 12], [0, 11, 12]])
response_mask = (responses != 0).long()
rewards = torch.zeros(2, 4)
rewards[0, 3] = 1.0
data = DataProto.from_dict(
    tensors={
        "prompts": prompts,
        "responses": responses,
        "response_mask": response_mask,
        "attention_mask": torch.cat([(prompts != 0).long(), response_mask], dim=1),
        "token_level_rewards": rewards,
    },
    non_tensors=dict(columns),
)
expected = torch.tensor([[0.5, 1.0, 2.0, 0.0], [1.5, 0.25, 0.0, 0.0]])
assert torch.equal(loss_weights(data, weights, rollouts=2), expected)

# Rewards 1 and 0: mean 1/2, deviation over n - 1 √½; verl adds 1e-6 to it.
size = 0.5 / (0.5**0.5 + 1e-6)
signed = torch.tensor([[size], [-size]])
out = weighted_advantages(compute_advantage, weights, rollouts=2)(
    data, adv_estimator="grpo", config=None
)
torch.testing.assert_close(out.batch["advantages"], signed * expected * response_mask)
assert out.batch["response_mask"].dtype == torch.int64

# verl's own loss of them: −Σ A·w·r / Σ 1.
config = ActorConfig(strategy="fsdp", rollout_n=2, ppo_micro_batch_size_per_gpu=2)
old = torch.full((2, 4), -1.0)
new = old + 0.01
given = {
    "old_log_prob": old,
    "log_prob": new,
    "response_mask": response_mask,
    "loss_agg_mode": "token-mean",
    "config": config,
}
loss, _ = core_algos.get_policy_loss_fn("vanilla")(advantages=out.batch["advantages"], **given)
by_hand = -(signed * expected * response_mask * float(np.exp(0.01))).sum() / 6
torch.testing.assert_close(loss, by_hand)

# On the fly: low_prob weighs 1 + α(1 − e^−1).
register_reweighted_loss("low_prob", [{"scheme": "low_prob", "alpha": 0.5}])
plain = signed * response_mask
loss, _ = core_algos.get_policy_loss_fn("low_prob")(advantages=plain, **given)
weight = 1 + 0.5 * (1 - float(np.exp(-1)))
torch.testing.assert_close(loss, -(plain * weight * float(np.exp(0.01))).sum() / 6)
for scheme, said in [("entropy_top", "entropy_old"), ("delta", "delta_logp")]:
    told = ""
    try:
        register_reweighted_loss("no", [scheme])
    except Refused as error:
        told = str(error)
    assert said in told
print("verl: all as by hand")
