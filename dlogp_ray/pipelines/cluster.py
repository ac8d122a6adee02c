"""The Ray session and where the actors of a job go.

A request for resources that nobody has, or actors that hold every CPU, make Ray wait without a
word; so both are checked, and refused, before work begins.
"""

import logging
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from dlogp_ray.config import RunConfig
from dlogp_ray.errors import Refused

IO_CPUS = 0.001
"""CPUs that a task that reads or writes a unit asks for: what an actor leaves of each of its own.

So that a node full of actors still has room for such tasks, also after another node was lost and
its actors came here: tasks that wait for CPUs which actors hold, and actors that wait for those
tasks, would wait for ever.
"""
_ACTOR_SHARE = 1 - IO_CPUS
_CONNECT_TIMEOUT_S = 10
_IDLE_WORKERS = 8
"""Processes that a Ray of this machine's own keeps beyond one a CPU."""


@dataclass(frozen=True)
class Placement:
    """How many actors, and what each one holds.

    Attributes:
        min_actors: How many are wanted from the beginning.
        max_actors: How many there may come to be.
        cpus: Of each, as Ray counts them.
        gpus: Of each.
        threads: Of each one's tensor operations.
    """

    min_actors: int
    max_actors: int
    cpus: float
    gpus: float
    threads: int = 1

    @property
    def device(self) -> str:
        """Where an actor holds the policies, as torch names it."""
        return "cuda" if self.gpus else "cpu"


def start_ray() -> bool:
    """Join the cluster that ``RAY_ADDRESS`` names (a submitted job has it), or start a local one.

    Returns:
        True if this call started or joined it, so that the caller ends it.

    Raises:
        Refused: Nothing answers at ``RAY_ADDRESS``, or Ray does not start.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Ray Data itself keeps arguments of its actors in the object store, and Ray's core prints an
    # error about that for every pool whose actors may restart.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray ends idle processes beyond one a CPU, and actors, its own too, count among them: those
    # that read and write would be started anew for every unit (2.5 s).
    os.environ.setdefault("RAY_num_workers_soft_limit", str((os.cpu_count() or 1) + _IDLE_WORKERS))
    # "local" where no cluster is named: Ray would else look for the one that was last started on
    # this machine, and wait for minutes if it is gone.
    address = os.environ.get("RAY_ADDRESS") or "local"
    _check_answers(address)
    with warnings.catch_warnings(), _standard_error_on_failure():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            ray.init(
                address=address,
                include_dashboard=False if address == "local" else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except ConnectionError as error:
            # Something listens there; without the cluster's token it answers nothing.
            raise _no_cluster(
                address,
                f"{error}; a cluster that asks for a token needs RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
            ) from None
        except Exception as error:  # of any type: a node that times out is a bare Exception
            raise Refused(
                f"Ray did not start (RAY_ADDRESS={address}): {type(error).__name__}: {error}. "
                "A machine that is short of memory, disk (RAY_TMPDIR) or processor time can be the "
                "cause; the same command tries again"
            ) from error
    return True


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes to reach an address where nobody is."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: object) -> Refused:
    return Refused(
        f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); correct it, or unset it "
        "to start Ray on this machine"
    )


@contextmanager
def _standard_error_on_failure() -> Iterator[None]:
    """Hold back what Ray's core, which is not Python, writes as it starts; show it if it fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: its CPUs, and the bytes that Ray gives to processes."""

    cpus: int
    memory_bytes: float


def smallest_node() -> Node:
    """What every node that has CPUs has at least."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_cpus = [resources for resources in there if resources.get("CPU", 0) >= 1]
    return Node(
        cpus=int(min((r["CPU"] for r in with_cpus), default=1)),
        memory_bytes=min((r.get("memory", 0.0) for r in with_cpus), default=0.0),
    )


def place_actors(
    config: RunConfig, resources: Mapping[str, float], threads: int | None = None
) -> Placement:
    """Where the scoring actors go in a cluster with these ``resources``.

    With GPUs: one actor a GPU, each with one CPU. Without: as many actors as there are CPUs for
    their threads, or as many threads as there are CPUs for the actors that the config names.
    Where the config gives a range of actors, the cluster may grow, and nobody can be asked by how
    much (no version of Ray reports it): the range is taken at its word.

    Args:
        config: The job.
        resources: Of the whole cluster as it is now.
        threads: CPU threads of an actor where the config does not name them; None to find them.

    Raises:
        Refused: The cluster can't hold them.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    wanted = config.actors
    grows = wanted is not None and wanted.min < wanted.max
    gpus_each = config.gpus_per_actor
    if gpus_each is None:
        gpus_each = 1.0 if gpus else 0.0
    if gpus_each:
        threads = config.threads_per_actor or 1
        room = int(gpus / gpus_each)
    else:
        shares = int(cpus / wanted.max) if wanted else 1
        threads = config.threads_per_actor or threads or max(1, shares)
        # An actor with more threads than its share of the CPUs is the config's own choice.
        room = int(cpus if wanted else max(1, cpus / threads))
    if wanted is not None and grows:
        cpus_each = _ACTOR_SHARE if gpus_each else threads * _ACTOR_SHARE
        return Placement(wanted.min, wanted.max, _rounded(cpus_each), gpus_each, threads)
    actors = wanted.max if wanted else max(1, room)
    asked = f"the job asks for {actors} actors with {gpus_each:g} GPUs each"
    there = f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs"
    if cpus <= 0:
        raise Refused(
            f"{asked} and CPUs to read and write, and {there}; where it adds nodes by itself, give "
            "a range: actors: {min: 1, max: 8} and gpus_per_actor: 1 (or 0)"
        )
    if actors > room:
        hint = (
            "lower actors or gpus_per_actor, or add nodes"
            if gpus_each
            else "more actors than CPUs only take each other's time and memory: lower actors"
        )
        raise Refused(f"{asked}, and {there}; {hint}")
    cpus_each = min(float(threads), cpus / actors) * _ACTOR_SHARE
    return Placement(actors, actors, _rounded(cpus_each), gpus_each, threads)


def _rounded(cpus: float) -> float:
    """Down to what Ray counts in: rounding up could ask for more than there is."""
    return int(cpus * 10_000) / 10_000


def missing_now(placement: Placement, resources: Mapping[str, float]) -> str | None:
    """What one actor asks for and the cluster does not have now, for people."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if cpus >= placement.cpus and gpus >= placement.gpus:
        return None
    return (
        f"a node with {placement.cpus:g} CPUs and {placement.gpus:g} GPUs; the cluster has "
        f"{cpus:g} CPUs and {gpus:g} GPUs"
    )
