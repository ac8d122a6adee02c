"""A Ray cluster of several nodes on this one machine, to try a job on more than one node.

    python -m cluster.local --nodes 3

from the root of the repository. It prints the line to paste into another terminal, and goes on
until Ctrl-C or SIGTERM. The head has no CPUs, as in the other files of this folder, so that all
work is on workers. A node's CPUs are tokens: more of them than the machine has only take turns.
There is no dashboard, so jobs join by RAY_ADDRESS, and `ray job submit` has nobody to talk to.
"""

import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

OBJECT_STORE_BYTES = 150 * 2**20
"""Of each node, in shared memory; Ray takes no less than half of it."""


@contextmanager
def ray_folder() -> Iterator[Path]:
    """A folder for all that Ray writes, and for a token of this cluster's own; gone afterwards.

    Ray listens on the machine's own address, not on the loopback, so it is not left open. The
    folder also holds Ray's note of the cluster last started: in the usual place, it would lead
    other programs here, and still do so when this cluster is gone.
    """
    # Not where TMPDIR says: the paths of Ray's sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="dlogp-", dir="/tmp"))
    token = folder / "auth_token"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    os.environ["RAY_TMPDIR"] = str(folder)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    os.environ.pop("RAY_AUTH_TOKEN", None)  # it would come first
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stop_on_signals(stop: threading.Event) -> None:
    """Let SIGINT and SIGTERM set ``stop``."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())


def run(nodes: int, cpus: int) -> None:
    """Start the cluster, say how to join it, and end it when a signal comes.

    Args:
        nodes: Workers.
        cpus: CPU tokens of each.

    Raises:
        typer.Exit: A process of the cluster died, with code 1.
    """
    stop = threading.Event()
    stop_on_signals(stop)
    with ray_folder() as folder:
        from ray.cluster_utils import Cluster  # reads the environment

        cluster = Cluster()
        try:
            for number in range(nodes + 1):
                cluster.add_node(
                    num_cpus=cpus if number else 0,  # the first is the head
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                )
                # Each node puts Ray's own handler in place, which waits 30 s for work to end.
                stop_on_signals(stop)
                if stop.is_set():
                    return
            typer.echo(f"{nodes} workers of {cpus} CPUs each, and a head without. To join:\n")
            typer.echo(
                f"export RAY_ADDRESS={cluster.address} RAY_AUTH_MODE=token "
                f"RAY_AUTH_TOKEN_PATH={folder / 'auth_token'}\n"
            )
            typer.echo("and then, for one: dlogp demo. Ctrl-C ends the cluster.")
            while not stop.wait(1):
                if not cluster.remaining_processes_alive():
                    typer.echo("a process of the cluster died; ending it", err=True)
                    raise typer.Exit(1)
        finally:
            cluster.shutdown()


def main(
    nodes: Annotated[int, typer.Option(min=1, help="Workers, besides the head.")] = 3,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each worker: tokens, not cores.")] = 2,
) -> None:
    """Start a Ray cluster of several nodes on this machine; Ctrl-C ends it."""
    run(nodes, cpus)


if __name__ == "__main__":
    typer.run(main)
