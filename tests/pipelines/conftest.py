"""Configs for jobs on small corpora, and runs that nothing disturbed, for tests to compare with.

They are done here: a job through Ray takes 10 s, most of it for importing torch in its processes.
What Ray does otherwise is tried where that is the point, with ``run_on="ray"``.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_rows, write_broken_gzip, write_jsonl

import dlogp_ray
from dlogp_ray.config import ScoreConfig

MakeConfig = Callable[..., ScoreConfig]


@pytest.fixture(scope="session")
def config_defaults(policy_folders: dict[str, Path]) -> dict[str, Any]:
    """A job over both tiny policies; its corpus and its output are missing."""
    return {
        "policies": {name: str(folder) for name, folder in policy_folders.items()},
        "run_id": "test",
        "unit_tokens": 300,
        "run_on": "here",
        "actors": 1,
        "threads_per_actor": 1,  # some runs that are compared stand on clusters of other sizes
    }


@pytest.fixture
def make_config(config_defaults: dict[str, Any], tmp_path: Path) -> MakeConfig:
    """A job over both tiny policies; keyword arguments replace its fields."""

    def make(**fields: Any) -> ScoreConfig:
        return ScoreConfig.from_mapping(
            config_defaults | {"output": str(tmp_path / "runs")} | fields
        )

    return make


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing disturbed.

    Attributes:
        config: Of its job.
        result: What the job said.
    """

    config: ScoreConfig
    result: dlogp_ray.ScoreResult

    def elsewhere(self, output: Path | str) -> ScoreConfig:
        """The same job with another output."""
        return self.config.model_copy(update={"output": str(output)})

    def copy(self, output: Path) -> ScoreConfig:
        """The job of a copy of the run there."""
        shutil.copytree(self.result.run, output / self.config.run_id)
        return self.elsewhere(output)


@pytest.fixture(scope="session")
def run_undisturbed(
    config_defaults: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Undisturbed]:
    """Runs a job to its end; its corpus is the folder to which ``write`` writes files."""

    def run(write: Callable[[Path], Any], **fields: Any) -> Undisturbed:
        folder = tmp_path_factory.mktemp("undisturbed")
        (folder / "corpus").mkdir()
        write(folder / "corpus")
        places = {"corpus": str(folder / "corpus"), "output": str(folder / "runs")}
        config = ScoreConfig.from_mapping(config_defaults | places | fields)
        return Undisturbed(config, dlogp_ray.score(config, progress=False))

    return run


@pytest.fixture(scope="session")
def finished(run_undisturbed: Callable[..., Undisturbed]) -> Undisturbed:
    """A sealed run of 40 rows in a few units, half of them JSON lines and half of them Parquet."""

    def write(corpus: Path) -> None:
        rows = make_rows(40)
        write_jsonl(corpus / "a.jsonl", rows[:20])
        pq.write_table(pa.Table.from_pylist(rows[20:]), corpus / "b.parquet", row_group_size=8)

    return run_undisturbed(write)


@pytest.fixture(scope="session")
def many_units(run_undisturbed: Callable[..., Undisturbed]) -> Undisturbed:
    """A sealed run of 600 rows in so many units that there is time to do something to it."""
    return run_undisturbed(lambda corpus: write_jsonl(corpus / "c.jsonl", make_rows(600)))


@pytest.fixture(scope="session")
def one_fails(run_undisturbed: Callable[..., Undisturbed]) -> Undisturbed:
    """A run of several units, one of which fails whoever scores it; sealed without that one."""

    def write(corpus: Path) -> None:
        write_jsonl(corpus / "a.jsonl", make_rows(60))
        write_broken_gzip(corpus / "z.jsonl.gz")

    return run_undisturbed(write, seal_partial=True)
