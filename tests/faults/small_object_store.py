"""The job of a file, with an object store that holds less than what is on its way. Prints JSON."""

import json
import sys

import ray
from ray._private.internal_api import memory_summary

import dlogp_ray
from dlogp_ray.config import ScoreConfig

if __name__ == "__main__":
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=80 * 2**20,
        logging_level="ERROR",
        log_to_driver=False,
    )
    result = dlogp_ray.score(ScoreConfig.from_yaml(sys.argv[1]), progress=False)
    summary = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    said = {"exit_code": result.exit_code, "run": result.run, "summary": summary}
    sys.stdout.write(json.dumps(said) + "\n")
