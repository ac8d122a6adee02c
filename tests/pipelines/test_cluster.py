"""Where actors go: they fit, they leave room for reading and writing, or the job is refused."""

import socket
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlogp_ray.config import ScoreConfig
from dlogp_ray.corpus.rows import RowRules
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.actor import ScoreUnit
from dlogp_ray.pipelines.cluster import IO_CPUS, Placement, place_actors, start_ray
from dlogp_ray.pipelines.planning import ScoreJob


def config(**fields: Any) -> ScoreConfig:
    required = {"corpus": "c", "policies": {"rl": "p"}, "output": "o", "run_id": "r"}
    return ScoreConfig.from_mapping(required | fields)


@pytest.mark.parametrize(
    ("resources", "fields", "expected"),
    [
        # One actor a CPU, all together one CPU less than there is.
        ({"CPU": 2.0}, {}, Placement(actors=2, cpus=0.5, gpus=0.0)),
        ({"CPU": 4.0}, {}, Placement(actors=4, cpus=0.75, gpus=0.0)),
        # The CPUs are divided among actors that the config names.
        ({"CPU": 4.0}, {"actors": 1}, Placement(actors=1, cpus=3.0, gpus=0.0, threads=4)),
        ({"CPU": 8.0}, {"actors": 3}, Placement(actors=3, cpus=2.0, gpus=0.0, threads=2)),
        # As many actors as the threads leave CPUs for.
        ({"CPU": 8.0}, {"threads_per_actor": 3}, Placement(2, 3.0, 0.0, threads=3)),
        ({"CPU": 4.0}, {"actors": 1, "threads_per_actor": 3}, Placement(1, 3.0, 0.0, 3)),
        # A single CPU is shared half and half.
        ({"CPU": 1.0}, {}, Placement(actors=1, cpus=0.5, gpus=0.0)),
        # One actor a GPU, with a CPU each.
        ({"CPU": 16.0, "GPU": 8.0}, {}, Placement(actors=8, cpus=1.0, gpus=1.0)),
        ({"CPU": 16.0, "GPU": 1.0}, {"gpus_per_actor": 0.25}, Placement(4, 1.0, 0.25)),
        ({"CPU": 4.0, "GPU": 1.0}, {"gpus_per_actor": 0}, Placement(4, 0.75, 0.0)),
    ],
)
def test_placement(
    resources: dict[str, float], fields: dict[str, Any], expected: Placement
) -> None:
    assert place_actors(config(**fields), resources) == expected


def test_a_run_keeps_its_threads_on_another_cluster() -> None:
    # 2 threads, recorded when the run began; a cluster of 8 CPUs holds four such actors
    assert place_actors(config(), {"CPU": 8.0}, 2) == Placement(4, 1.75, 0.0, threads=2)
    assert place_actors(config(actors=1), {"CPU": 8.0}, 2) == Placement(1, 2.0, 0.0, threads=2)


@pytest.mark.parametrize(
    ("resources", "fields", "named"),
    [
        ({"CPU": 2.0}, {"gpus_per_actor": 1}, "0 GPUs"),
        ({"CPU": 9.0, "GPU": 2.0}, {"actors": 3}, "3 actors with 1 GPUs each"),
        ({"CPU": 1.0, "GPU": 1.0}, {}, "1 CPUs"),
        ({"CPU": 2.0}, {"actors": 100}, "100 actors"),
        ({}, {}, "0 CPUs"),
    ],
)
def test_what_the_cluster_cannot_hold_is_refused(
    resources: dict[str, float], fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(Refused, match=named):
        place_actors(config(**fields), resources)


@given(
    cpus=st.integers(1, 512),
    gpus=st.integers(0, 64),
    actors=st.none() | st.integers(1, 64),
    threads=st.none() | st.integers(1, 8),
    recorded=st.none() | st.integers(1, 64),
)
def test_there_is_always_room_to_read_and_write(
    cpus: int, gpus: int, actors: int | None, threads: int | None, recorded: int | None
) -> None:
    job = config(actors=actors, threads_per_actor=threads)
    try:
        placed = place_actors(job, {"CPU": float(cpus), "GPU": float(gpus)}, recorded)
    except Refused:
        return
    assert placed.actors * placed.cpus + 2 * IO_CPUS <= cpus
    assert placed.actors * placed.gpus <= gpus
    assert placed.cpus > 0


def test_a_cluster_that_is_not_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(Refused, match="no Ray cluster answers"):
        start_ray()


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_a_gpu_that_torch_does_not_see_is_refused() -> None:
    rules = RowRules(vocab_size=2, max_tokens=None, columns={}, carry={})
    with pytest.raises(Refused, match="torch sees none"):
        ScoreUnit(ScoreJob(config(), rules, "run"), "cuda")
