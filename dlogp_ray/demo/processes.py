"""Processes beside a demo's own, which end with it, however it ends."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread


def pool_of(workers: int) -> ProcessPoolExecutor:
    """Processes that import anew: threads of torch do not outlive a fork."""
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_end_with_parent
    )


def _end_with_parent() -> None:
    """Else they wait for ever for more to do: each holds an end of the pipe that it comes by."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
