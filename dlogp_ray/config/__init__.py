"""One frozen model per job: the only home of defaults, saved with the output.

A config is YAML (or keyword arguments from Python). Unknown fields are refused. Credentials are
never part of it: object stores take theirs from the environment or the usual files.
"""

from dlogp_ray.config.bench import BenchConfig
from dlogp_ray.config.corpus import CORPUS_COLUMNS, CorpusEntry
from dlogp_ray.config.intervene import InterveneConfig, RuleConfig
from dlogp_ray.config.job import JobConfig, check_address
from dlogp_ray.config.reweight import ReweightConfig, WeightsConfig
from dlogp_ray.config.run import BASE, ActorRange, PolicySource, RunConfig
from dlogp_ray.config.schemes import SCHEMES, AnyScheme, Scheme
from dlogp_ray.config.score import CarryType, ScoreConfig
from dlogp_ray.config.sparsity import SparsityConfig

__all__ = [
    "BASE",
    "CORPUS_COLUMNS",
    "SCHEMES",
    "ActorRange",
    "AnyScheme",
    "BenchConfig",
    "CarryType",
    "CorpusEntry",
    "InterveneConfig",
    "JobConfig",
    "PolicySource",
    "ReweightConfig",
    "RuleConfig",
    "RunConfig",
    "Scheme",
    "ScoreConfig",
    "SparsityConfig",
    "WeightsConfig",
    "check_address",
]
