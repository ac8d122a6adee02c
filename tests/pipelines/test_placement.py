"""Where actors go: they fit, they leave room for reading and writing, or the job is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlogp_ray.config import ScoreConfig
from dlogp_ray.corpus.rows import RowRules
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.run.placement import IO_CPUS, Placement, missing_now, place_actors
from dlogp_ray.pipelines.score.actor import ScoreUnit
from dlogp_ray.pipelines.score.job import ScoreJob


def config(**fields: Any) -> ScoreConfig:
    required = {"corpus": "c", "policies": {"rl": "p"}, "output": "o", "run_id": "r"}
    return ScoreConfig.from_mapping(required | fields)


def having(cpus: float, gpus: float = 0.0) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus}


# An actor asks for 0.999 of each of its CPUs; the rest is room for reading and writing.
@pytest.mark.parametrize(
    ("resources", "fields", "expected"),
    [
        # One actor a CPU.
        (having(2), {}, Placement(2, 2, 0.999, 0.0)),
        # The CPUs are divided among actors that the config names.
        (having(4), {"actors": 1}, Placement(1, 1, 3.996, 0.0, threads=4)),
        (having(8), {"actors": 3}, Placement(3, 3, 1.998, 0.0, threads=2)),
        # As many actors as the threads leave CPUs for.
        (having(8), {"threads_per_actor": 3}, Placement(2, 2, 2.997, 0.0, threads=3)),
        (having(4), {"actors": 1, "threads_per_actor": 3}, Placement(1, 1, 2.997, 0.0, 3)),
        # More threads than CPUs is the config's own choice: Ray is asked for what there is.
        (having(4), {"actors": 4, "threads_per_actor": 3}, Placement(4, 4, 0.999, 0.0, 3)),
        (having(1), {}, Placement(1, 1, 0.999, 0.0)),
        # One actor a GPU, with a CPU each.
        (having(16, 8), {}, Placement(8, 8, 0.999, 1.0)),
        (having(1, 1), {}, Placement(1, 1, 0.999, 1.0)),
        (having(16, 1), {"gpus_per_actor": 0.25}, Placement(4, 4, 0.999, 0.25)),
        (having(4, 8), {}, Placement(8, 8, 0.4995, 1.0)),  # fewer CPUs than GPUs: they are shared
        (having(32, 8), {"gpus_per_actor": 4}, Placement(2, 2, 0.999, 4.0)),
        (having(4, 1), {"gpus_per_actor": 0}, Placement(4, 4, 0.999, 0.0)),
        # A range is taken at its word: the cluster may grow.
        (having(16, 8), {"actors": {"max": 64}}, Placement(1, 64, 0.999, 1.0)),
        (having(0), {"actors": {"max": 64}, "gpus_per_actor": 1}, Placement(1, 64, 0.999, 1.0)),
        (having(2), {"actors": {"min": 2, "max": 4}}, Placement(2, 4, 0.999, 0.0)),
        (having(2), {"actors": {"max": 4}, "threads_per_actor": 2}, Placement(1, 4, 1.998, 0.0, 2)),
    ],
)
def test_placement(
    resources: dict[str, float], fields: dict[str, Any], expected: Placement
) -> None:
    assert place_actors(config(**fields), resources) == expected


def test_what_is_waited_for_is_what_one_actor_asks_for() -> None:
    placement = Placement(1, 64, 0.999, 1.0)
    assert missing_now(placement, having(8, 1)) is None
    said = missing_now(placement, having(8))
    assert said is not None
    assert "0.999 CPUs and 1 GPU; the cluster has 8 CPUs and 0 GPUs" in said
    assert missing_now(Placement(1, 64, 0.999, 0.0), {}) is not None


def test_a_run_keeps_its_threads_on_another_cluster() -> None:
    # 2 threads, recorded when the run began; a cluster of 8 CPUs holds four such actors
    assert place_actors(config(), having(8), 2) == Placement(4, 4, 1.998, 0.0, threads=2)
    assert place_actors(config(actors=1), having(8), 2) == Placement(1, 1, 1.998, 0.0, threads=2)


@pytest.mark.parametrize(
    ("resources", "fields", "named"),
    [
        (having(2), {"gpus_per_actor": 1}, "0 GPUs"),
        (having(9, 2), {"actors": 3}, "3 actors with 1 GPU each"),
        (having(9, 2), {"gpus_per_actor": 4}, "1 actor with 4 GPUs each"),
        (having(2), {"actors": 100}, "100 actors"),
        (having(2), {"threads_per_actor": 64}, "threads_per_actor: 64, and the .* has 2 CPUs"),
        (having(2), {"threads_per_actor": 3, "actors": 1}, "threads_per_actor: 3"),
        ({}, {}, r"0 CPUs.* give a range: actors: \{min: 1, max: 8\}"),
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
        placed = place_actors(job, having(cpus, gpus), recorded)
    except Refused:
        return
    assert placed.max_actors * placed.cpus + IO_CPUS <= cpus
    assert placed.max_actors * placed.gpus <= gpus
    assert placed.cpus > 0


@given(cpus=st.integers(1, 512), threads=st.integers(1, 64))
def test_no_node_can_be_filled_with_actors(cpus: int, threads: int) -> None:
    # As many actors as Ray puts on a node of these CPUs, which another node's loss may bring about.
    placed = place_actors(config(threads_per_actor=threads), having(1024))
    packed = int(cpus / placed.cpus)
    assert cpus - packed * placed.cpus >= IO_CPUS * (1 - 1e-9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_a_gpu_that_torch_does_not_see_is_refused() -> None:
    rules = RowRules(vocab_size=2, max_tokens=None, carry={})
    with pytest.raises(Refused, match="torch sees none"):
        ScoreUnit(ScoreJob("run", config(), rules), "cuda")
