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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from dlogp_ray.config import ScoreConfig
from dlogp_ray.errors import Refused

IO_CPUS = 0.25
"""CPU share of a task that reads or writes a unit."""
_CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True)
class Placement:
    """How many actors, and what each one holds."""

    actors: int
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
        Refused: Nothing answers at ``RAY_ADDRESS``.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Ray Data itself keeps arguments of its actors in the object store, and Ray's core prints an
    # error about that for every pool whose actors may restart.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # A lost unit is recorded with its cause; the stack of Ray's own threads stays in Ray's log.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
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
            raise _no_cluster(address, error) from None
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


def _no_cluster(address: str, error: Exception) -> Refused:
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
    config: ScoreConfig, resources: dict[str, float], threads: int | None = None
) -> Placement:
    """Where the scoring actors go in a cluster with these ``resources``.

    With GPUs: one actor a GPU, each with one CPU. Without: as many actors as there are CPUs for
    their threads, or as many threads as there are CPUs for the actors that the config names; all
    together leave one CPU to reading and writing.

    Args:
        config: The job.
        resources: Of the whole cluster.
        threads: CPU threads of an actor where the config does not name them; None to find them.

    Raises:
        Refused: The cluster can't hold them.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    gpus_each = config.gpus_per_actor
    if gpus_each is None:
        gpus_each = 1.0 if gpus else 0.0
    if gpus_each:
        threads = config.threads_per_actor or 1
        actors = config.actors or max(1, int(gpus / gpus_each))
        cpus_each = min(1.0, max(0.0, cpus - 1) / actors)
    else:
        shares = int(cpus / config.actors) if config.actors else 1
        threads = config.threads_per_actor or threads or max(1, shares)
        actors = config.actors or max(1, int(cpus / threads))
        cpus_each = min(float(threads), max(cpus - 1, cpus / 2) / actors)
    asked = f"{actors} actors with {gpus_each:g} GPUs each"
    there = f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs"
    if actors * gpus_each > gpus:
        raise Refused(
            f"the job asks for {asked}, and {there}; lower actors or gpus_per_actor, or add nodes"
        )
    if not gpus_each and actors > max(cpus, 1):
        raise Refused(
            f"the job asks for {actors} actors, and {there}; more actors than CPUs only take each "
            "other's time and memory: lower actors"
        )
    if cpus < 2 * IO_CPUS or (gpus_each and cpus <= 1):
        raise Refused(f"the job asks for {asked} and CPUs to read and write, and {there}")
    # Ray counts in ten-thousandths; rounding up could ask for more than there is.
    return Placement(actors, int(cpus_each * 1000) / 1000, gpus_each, threads)
