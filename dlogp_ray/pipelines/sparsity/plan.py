"""What a sparsity job can be refused for before anything is read."""

import pyarrow as pa

from dlogp_ray.analysis.sparsity.groups import SPLIT
from dlogp_ray.analysis.sparsity.tables import names_of_tables
from dlogp_ray.config import SparsityConfig
from dlogp_ray.errors import Refused
from dlogp_ray.tables.kinds import GENERATIONS, WEIGHTS
from dlogp_ray.tables.run import Run

_ANYHOW = (*SPLIT, "step")
_NOT_SPLIT_BY = ("status", "error", "sample_id", *_ANYHOW)


def check_sparsity(run: Run, config: SparsityConfig) -> None:
    """Refuse what can't be analysed, before anything is read.

    Raises:
        Refused: With what to do.
    """
    if run.kind is WEIGHTS:
        raise Refused(
            f"{run.uri} is a weights table, whose figures `dlogp show` has; give the run of scores "
            "that it was made from"
        )
    if run.kind is GENERATIONS:
        raise Refused(
            f"run {run.uri} is of an intervene job, whose statistics are in its curve; score its "
            "generations with `dlogp score` and analyse that run"
        )
    if not run.sealed and not config.partial:
        share = f"{len(run.committed())} of {run.planned} units"
        raise Refused(
            f"run {run.uri} is not sealed ({share} are there); end it with `dlogp score`, or "
            "analyse what is there with --partial"
        )
    scalars = [f.name for f in run.schema if not pa.types.is_nested(f.type)]
    possible = [name for name in scalars if name not in _NOT_SPLIT_BY]
    if anyhow := [name for name in config.by if name in _ANYHOW]:
        raise Refused(f"by: figures are split by {', '.join(anyhow)} anyhow; leave it out")
    unknown = [name for name in config.by if name not in possible]
    lists = [f.name for f in run.schema if f.name in unknown and pa.types.is_nested(f.type)]
    if lists:
        raise Refused(
            f"by: {lists[0]} has a value a token; figures are split by columns of one value a "
            f"response: {', '.join(possible)}"
        )
    if several := [name for name in unknown if set(name.split(",")) <= {*possible, *_ANYHOW}]:
        apart = " ".join(f"--by {name}" for name in several[0].split(",") if name not in _ANYHOW)
        raise Refused(f"by: {several[0]}: each column by itself: {apart}")
    if unknown:
        raise Refused(
            f"run {run.uri}: figures can't be split by {', '.join(unknown)}: expected columns of "
            f"one value a response, got none so named among {', '.join(possible)}. (Metadata is "
            "there where the score job carried it)"
        )
    if taken := [name for name in config.by if name in names_of_tables()]:
        raise Refused(
            f"by: {', '.join(taken)} is the name of a column of the statistics themselves; carry "
            "it under another name"
        )
