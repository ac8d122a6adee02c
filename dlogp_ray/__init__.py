"""Distributed batch scoring of base and RL-tuned language models on Ray.

    import dlogp_ray
    result = dlogp_ray.score(dlogp_ray.ScoreConfig.from_yaml("job.yaml"))
    dlogp_ray.open_run(result.run).sql("SELECT avg(delta_logp) FROM tokens")

Importing this package loads neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlogp_ray.config import InterveneConfig, ReweightConfig, ScoreConfig, SparsityConfig
    from dlogp_ray.pipelines.intervene.intervene import intervene
    from dlogp_ray.pipelines.intervene.result import InterveneResult
    from dlogp_ray.pipelines.reweight.result import ReweightResult
    from dlogp_ray.pipelines.reweight.reweight import reweight
    from dlogp_ray.pipelines.run.session import shutdown
    from dlogp_ray.pipelines.score.result import ScoreResult
    from dlogp_ray.pipelines.score.score import score
    from dlogp_ray.pipelines.sparsity.result import SparsityResult
    from dlogp_ray.pipelines.sparsity.sparsity import sparsity
    from dlogp_ray.tables.run import Run, open_run
    from dlogp_ray.weights.table import load_logps, load_weights

__all__ = [
    "InterveneConfig",
    "InterveneResult",
    "ReweightConfig",
    "ReweightResult",
    "Run",
    "ScoreConfig",
    "ScoreResult",
    "SparsityConfig",
    "SparsityResult",
    "intervene",
    "load_logps",
    "load_weights",
    "open_run",
    "reweight",
    "score",
    "shutdown",
    "sparsity",
]

_HOMES = {
    "InterveneConfig": "dlogp_ray.config",
    "InterveneResult": "dlogp_ray.pipelines.intervene.result",
    "intervene": "dlogp_ray.pipelines.intervene.intervene",
    "ReweightConfig": "dlogp_ray.config",
    "ReweightResult": "dlogp_ray.pipelines.reweight.result",
    "reweight": "dlogp_ray.pipelines.reweight.reweight",
    "Run": "dlogp_ray.tables.run",
    "ScoreConfig": "dlogp_ray.config",
    "ScoreResult": "dlogp_ray.pipelines.score.result",
    "load_logps": "dlogp_ray.weights.table",
    "load_weights": "dlogp_ray.weights.table",
    "open_run": "dlogp_ray.tables.run",
    "score": "dlogp_ray.pipelines.score.score",
    "shutdown": "dlogp_ray.pipelines.run.session",
    "SparsityConfig": "dlogp_ray.config",
    "SparsityResult": "dlogp_ray.pipelines.sparsity.result",
    "sparsity": "dlogp_ray.pipelines.sparsity.sparsity",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dlogp_ray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
