"""Pairs of tiny policies for decoding."""

from pathlib import Path

import pytest
from conftest import DEVICE, make_policy_folder

from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Policy


def load(folder: Path, name: str) -> Policy:
    return Policy.load(resolve(name, str(folder)), device=DEVICE)


@pytest.fixture(scope="session")
def pair(policy_folders: dict[str, Path]) -> tuple[Policy, Policy]:
    """Base and RL, far apart: Δlog p of several nats."""
    return load(policy_folders["base"], "base"), load(policy_folders["rl"], "rl")


@pytest.fixture(scope="session")
def toy_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy]:
    """Two policies of four ids."""
    root = tmp_path_factory.mktemp("toy")
    folders = (
        make_policy_folder(root / name, seed, vocab_size=4, hidden_size=16, num_hidden_layers=1)
        for name, seed in (("base", 3), ("rl", 4))
    )
    base, rl = (load(folder, folder.name) for folder in folders)
    return base, rl
