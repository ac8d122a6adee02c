"""Weights in the own code of trainers that need an environment of their own.

verl and OpenRLHF install from the package index on a machine without a GPU; NeMo-RL's package there
is a placeholder, and slime is not there at all: their layouts are tested in test_exporters.py only.
``DLOGP_TRAINERS`` names a folder where the environments (3 GB) are kept from run to run.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2_400)]

ROOT = Path(__file__).parents[2]
OURS = "array-api-compat fsspec jaxtyping pyarrow pydantic pyyaml duckdb rich s3fs"
INSTALL = {
    "verl": [
        "torch==2.13.0 numpy",
        "--no-deps verl==0.9.1",
        "ray==2.60.0 tensordict==0.10.0 omegaconf==2.3.1 transformers==5.9.0 packaging "
        "codetiming==1.4.0 dill==0.4.1",
        "hydra-core torchdata tensorboard datasets accelerate peft pandas cachetools uvicorn "
        "fastapi aiohttp",
        f"TransferQueue>=0.1.10 pyzmq msgspec {OURS}",
    ],
    "openrlhf": [
        "torch==2.13.0 numpy",
        "--no-deps openrlhf==0.11.2",
        "transformers==5.15.0 ray==2.55.0 pylatexenc peft einops torchdata",
        f"deepspeed==0.19.6 {OURS}",
    ],
}


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("DLOGP_TRAINERS")
    return Path(kept) if kept else tmp_path_factory.mktemp("trainers")


@pytest.mark.parametrize("trainer", INSTALL)
def test_its_own_code_trains_on_the_weights(
    trainer: str, environments: Path, tmp_path: Path
) -> None:
    python = environments / trainer / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environments / trainer)], check=True)
        for packages in INSTALL[trainer]:
            pip = [str(python), "-m", "pip", "install", "--quiet", "--no-compile"]
            subprocess.run([*pip, *packages.split()], check=True)
    done = subprocess.run(
        [str(python), "-W", "ignore", f"tests/trainers/{trainer}_check.py", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as by hand" in done.stdout
