"""A small corpus of every kind of row, and configs for jobs on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlogp_ray.config import ScoreConfig

MakeConfig = Callable[..., ScoreConfig]


@pytest.fixture
def make_config(policy_folders: dict[str, Path], tmp_path: Path) -> MakeConfig:
    """A job over both tiny policies; keyword arguments replace its fields."""

    def make(**fields: Any) -> ScoreConfig:
        defaults = {
            "policies": {name: str(folder) for name, folder in policy_folders.items()},
            "output": str(tmp_path / "runs"),
            "run_id": "test",
            "unit_tokens": 300,
            "actors": 1,
        }
        return ScoreConfig.from_mapping(defaults | fields)

    return make
