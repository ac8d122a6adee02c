"""Weights in OpenRLHF's own code, in an environment that has it: run by test_other_trainers.py.

flash_attn and vllm have no build for this machine. What OpenRLHF's modules import of them, and
never call here, is stood in for.
"""

import importlib.machinery
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed  # noqa: F401  (these ask whether flash_attn is there, and so come before it)
import peft  # noqa: F401
import torch
import transformers  # noqa: F401
from weights_tables import made_up_weights, weights_row

from dlogp_ray.weights.openrlhf import action_weights, weighted_maker
from dlogp_ray.weights.table import load_weights


def stand_in(name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    for key, value in attributes.items():
        setattr(module, key, value)
    sys.modules[name] = module


stand_in("flash_attn")
stand_in("flash_attn.utils")
names = ("index_first_axis", "pad_input", "rearrange", "unpad_input")
stand_in("flash_attn.bert_padding", **dict.fromkeys(names))
stand_in("flash_attn.utils.distributed", all_gather=None)
stand_in("openrlhf.trainer.ray")
stand_in("openrlhf.trainer.ray.launcher", RayActorGroup=object)

from openrlhf.models.loss import PolicyLoss  # noqa: E402
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker  # noqa: E402
from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer  # noqa: E402

folder = Path(sys.argv[1])
PROMPTS = [[11, 12], [11, 12, 13]]
RESPONSES = [[21, 22, 23, 24], [31, 32]]
WEIGHTS = [[0.5, 1.0, 2.0, 0.0], [1.5, 0.25]]
rows = [
    weights_row(f"s{index}", response, weights, prompt_ids=PROMPTS[index])
    for index, (response, weights) in enumerate(zip(RESPONSES, WEIGHTS, strict=True))
]
made_up_weights(str(folder / "w"), [rows])
weights = load_weights(str(folder / "w"), cache=folder / "cache")


def experience(index: int) -> Any:
    tokens = PROMPTS[index] + RESPONSES[index]
    n = len(tokens)
    actions = torch.zeros(n, dtype=torch.long)
    actions[len(PROMPTS[index]) :] = 1
    return Experience(
        sequences=torch.tensor([tokens]),
        attention_mask=torch.ones(1, n, dtype=torch.long),
        action_mask=actions[1:][None],
        rollout_log_probs=torch.full((1, n - 1), -1.0),
        prompts=["p"],
        labels=[f"s{index}"],
        rewards=torch.tensor([1.0 - index]),
        scores=torch.tensor([1.0 - index]),
        response_length=torch.tensor([len(RESPONSES[index])]),
        truncated=torch.tensor([False]),
        total_length=torch.tensor([float(n)]),
        info={},
        index=[index],
    )


both = Experience.concat_experiences([experience(0), experience(1)], 0)
expected = torch.tensor([[0, 0.5, 1.0, 2.0, 0], [0, 0, 1.5, 0.25, 0]])
assert torch.equal(action_weights(both, weights), expected)

both.kl = torch.zeros(both.action_mask.shape)
both.action_log_probs = torch.full(both.action_mask.shape, -1.0)
advantage = SimpleNamespace(estimator="group_norm", gamma=1.0, lambd=1.0, no_std_norm=False)
reward = SimpleNamespace(clip_range=None, overlong_buffer_len=None, stop_properly_penalty_coef=None)
args = SimpleNamespace(
    algo=SimpleNamespace(advantage=advantage),
    rollout=SimpleNamespace(n_samples_per_prompt=2),
    reward=reward,
)
maker = weighted_maker(RemoteExperienceMaker, weights)
made = maker.__new__(maker)
made.strategy, made.args = SimpleNamespace(args=args), args
made.advantage_estimator, made.kl_ctl = "group_norm", SimpleNamespace(value=0.0)
made.compute_advantages_and_returns([both])
# Rewards 1 and 0: mean 1/2, deviation over n - 1 √½; OpenRLHF adds 1e-9 to it.
signed = torch.tensor([[0.5**0.5], [-(0.5**0.5)]])
found = both.advantages * both.action_mask
torch.testing.assert_close(found, signed * expected)
both.kl = both.index = None

# Through its buffer, which asks for a CUDA device, into its loss: −Σ A·w·r / Σ 1.
torch.cuda.current_device = lambda: 0
buffer = NaiveReplayBuffer(sample_batch_size=2, cpu_offload=True)
buffer.append(both)
back = buffer.collate_fn([buffer[0], buffer[1]])
logp = torch.full(both.action_mask.shape, -0.99)
loss = PolicyLoss()(logp, both.action_log_probs, back.advantages, action_mask=both.action_mask)[0]
by_hand = -(signed * expected).sum() * torch.tensor(0.01).exp() / 6
torch.testing.assert_close(loss, by_hand)
print("OpenRLHF: all as by hand")
