"""The policies that ship with the package: where they are, and which one the demo calls `rl`."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

BASE_NAME = "base"
ACCURACIES_FILE = "accuracies.json"


def checkpoints_folder() -> Path:
    """The folder that holds the shipped policies and the record of their accuracies."""
    return Path(str(resources.files("dlogp_ray.demo") / "checkpoints"))


def accuracies() -> dict[str, Any]:
    """The record that the recipe wrote beside the policies: `rl`, `checkpoints`, seed, versions.

    `checkpoints` maps each policy's name to its training step, its accuracy on held-out problems
    with the standard error and the number of problems, and its mean response length in tokens.
    """
    record: dict[str, Any] = json.loads((checkpoints_folder() / ACCURACIES_FILE).read_text())
    return record


def rl_name() -> str:
    """The name of the policy that the demo compares with `base`."""
    name: str = accuracies()["rl"]
    return name


def checkpoint_path(name: str) -> Path:
    """The folder of one shipped policy.

    Args:
        name: "base", or the name of an RL checkpoint such as `rl_name()`.

    Raises:
        ValueError: no policy of that name is shipped.
    """
    shipped = accuracies()["checkpoints"]
    if name not in shipped:
        raise ValueError(f"expected one of the shipped policies {sorted(shipped)}, got {name!r}")
    return checkpoints_folder() / name
