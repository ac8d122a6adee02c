"""A Ray on this machine: started, and started again where the machine was too busy for it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from dlogp_ray.events import tell

STARTS = 4
"""Ray gives the processes that it starts 30 s to be there, which can't be set: with a load of 20 on
2 cores they took longer."""
_TOO_LATE = "timed out during startup"
"""What Ray says of that."""


def start_local(**options: Any) -> None:
    """``ray.init`` of a node of this machine's own.

    Args:
        options: Its others.

    Raises:
        Exception: Ray did not start, as often as it was tried.
    """
    import ray

    for attempt in range(1, STARTS + 1):
        before = _children()
        try:
            ray.init(address="local", **options)
        except Exception as error:
            if _TOO_LATE not in str(error) or attempt == STARTS:
                raise
            _end(_children() - before, Path(ray.__file__).parent)
            said = (
                "Ray's processes were not there in time, on a busy machine; they are started anew"
            )
            tell("Ray was late", said, attempt=attempt)
        else:
            return


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def _end(processes: set[psutil.Process], ray: Path) -> None:
    """End those that run Ray's own programs, with what they have started: they would go on."""
    family = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if any(str(ray) in word for word in process.cmdline()):
                family += [process, *process.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=30)
