"""What Ray costs a job, and where one is certain to go before it is known how much it is.

Imports nothing that takes time: Ray starts beside the imports of whoever is certain to need it.
"""

import os
import timeit
from contextlib import suppress
from functools import cache

from dlogp_ray import store
from dlogp_ray.config import RunConfig
from dlogp_ray.config.job import RunOn
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.run import session
from dlogp_ray.pipelines.run.machine import cpus, has_gpus
from dlogp_ray.pipelines.run.placement import place_actors
from dlogp_ray.tables.object_names import SEAL

_RAY_COSTS = 20_000
"""What a job through Ray takes longer than one in this process, beside its units, in ``_PIECE``.

Imports and the start of processes are Python's work, on a slow machine as on a fast one. On 2 cores
where the piece takes 1.05 ms the demo's command, of one unit, took 41 to 52 s through Ray, and 23
to 27 s here.
"""
_PIECE = "sum(i * i for i in range(20_000))"
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray gives to a job that was submitted."""


@cache
def ray_costs_s() -> float:
    """What a job through Ray takes longer than one in this process, beside its units: seconds."""
    return _RAY_COSTS * min(timeit.repeat(_PIECE, number=1, repeat=10))


def settled(asked: RunOn, why_not_here: str | None = None) -> RunOn:
    """Where work is done, as far as that can be said before it is known how much there is.

    Args:
        asked: By the config.
        why_not_here: What this process lacks for it, and what to write instead.

    Returns:
        "auto" where it depends on how long it takes.

    Raises:
        Refused: It was asked for here, and can't be done here.
    """
    if asked == "here":
        if _SUBMITTED in os.environ:
            why_not_here = (
                "this job was submitted to a Ray cluster, and `here` would do all of its work in "
                "one process there; write run_on: ray, or leave it out"
            )
        if why_not_here:
            raise Refused(f"run_on: here: {why_not_here}")
        return asked
    there = session.was_there() or session.address() != "local"
    return "ray" if asked == "ray" or there or why_not_here else "auto"


def begin(config: RunConfig) -> RunOn:
    """``settled``, for a job that makes a run; Ray begins to start where it is certain to be used.

    Raises:
        Refused: It is to be done here, and can't be; or this machine has no room for its actors.
    """
    most = config.actors.max if config.actors else 1
    too_many = None
    if config.actors and most > 1:
        fewest = config.actors.min
        asked = str(most) if fewest == most else f"{{min: {fewest}, max: {most}}}"
        too_many = (
            f"actors: {asked} are as many processes, and here there is one; write actors: 1, or "
            "run_on: ray"
        )
    where = settled(config.run_on, too_many)
    if where == "ray" and not _sealed(config.run_uri):
        if not session.was_there() and session.address() == "local":
            _check_room(config)
        session.begin()
    return where


def _check_room(config: RunConfig) -> None:
    """Refuse what a Ray of this machine would refuse, before it takes half a minute to start.

    Raises:
        Refused: This machine has fewer CPUs than the actors that are asked for, or no GPU for them.
    """
    if not has_gpus():  # how many there are to use, Ray will say
        place_actors(config, {"CPU": cpus(), "GPU": 0}, where="machine")


def _sealed(run_uri: str) -> bool:
    with suppress(OSError):  # met again, and said, where the run is opened
        return store.exists(f"{run_uri}/{SEAL}")
    return False
