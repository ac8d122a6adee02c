"""The job of a file on a cluster whose nodes go or come: clusters.py lose|grow JOB. Prints JSON."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import dlogp_ray
from dlogp_ray.config import ScoreConfig
from dlogp_ray.pipelines.score.plan import ScorePlan

TESTS = str(Path(__file__).parents[1])
STORE = {"object_store_memory": 100 * 2**20}


def start(*cpus: int) -> Cluster:
    """A head with the first of these CPUs, and a node for each other; a node is lost after 3 s."""
    system = {"health_check_period_ms": 1_000, "health_check_failure_threshold": 3}
    cluster = Cluster()
    cluster.add_node(num_cpus=cpus[0], include_dashboard=False, _system_config=system, **STORE)
    for more in cpus[1:]:
        cluster.add_node(num_cpus=more, **STORE)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    return cluster


def wait_for(what: Callable[[], object], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError("the job did not come so far")
        time.sleep(0.05)


def objects(config: ScoreConfig) -> int:
    return len(list(Path(config.run_uri, "scores").glob("part-*")))


def nodes_of_actors() -> set[str]:
    """Nodes on which a scoring actor is."""
    return {
        actor["Address"]["NodeID"]
        for actor in ray._private.state.actors().values()
        if actor["State"] == "ALIVE" and "MapWorker" in actor["ActorClassName"]
    }


def lose(config: ScoreConfig, job: threading.Thread) -> dict[str, object]:
    """Two actors fill the CPUs of two nodes; one of them goes with its node, for good."""
    cluster = start(0, 1, 1)
    job.start()
    workers = {node.node_id: node for node in list(cluster.worker_nodes)}
    wait_for(lambda: objects(config) >= 3 and workers.keys() & nodes_of_actors())
    lost = max(workers.keys() & nodes_of_actors())
    cluster.remove_node(workers[lost], allow_graceful=False)
    at_loss = objects(config)
    job.join()
    return {"objects_at_loss": at_loss}


def grow(config: ScoreConfig, job: threading.Thread) -> dict[str, object]:
    """No node has a CPU at first; one comes, and another one later. Stubs score, once tried."""
    sys.path.append(TESTS)
    os.environ["PYTHONPATH"] = os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])
    from stub_policies import StubUnit

    ScorePlan.stages = replace(ScorePlan.stages, actor=StubUnit)
    cluster = start(0)
    said, write = list[str](), sys.stderr.write

    def heard(text: str) -> int:
        said.append(text)
        return write(text)

    sys.stderr.write = heard  # type: ignore[method-assign]
    job.start()
    wait_for(lambda: "waiting for" in "".join(said))
    job.join(timeout=5)
    waited = job.is_alive() and not Path(config.run_uri).exists()
    cluster.add_node(num_cpus=2, **STORE)
    wait_for(lambda: objects(config) >= 1)
    before = nodes_of_actors()
    cluster.add_node(num_cpus=2, **STORE)
    wait_for(lambda: len(nodes_of_actors()) == 2, seconds=300)
    after = nodes_of_actors()
    job_file.with_suffix(".go").touch()  # for which its later rows wait
    job.join()
    return {"waited": waited, "before": len(before), "after": len(after)}


if __name__ == "__main__":
    job_file = Path(sys.argv[2])
    config = ScoreConfig.from_yaml(job_file)
    results = []
    # Nodes can only be added and removed by the main thread.
    job = threading.Thread(target=lambda: results.append(dlogp_ray.score(config)), daemon=True)
    said = {"lose": lose, "grow": grow}[sys.argv[1]](config, job)
    ray.shutdown()
    (result,) = results
    said |= {"exit_code": result.exit_code, "run": result.run}
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
