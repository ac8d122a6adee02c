"""A call's record in its run: that its work began, how it ended, or by what it was stopped."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from dlogp_ray.errors import Stopped
from dlogp_ray.pipelines.run.clock import Clock
from dlogp_ray.pipelines.run.stop import StopRequest
from dlogp_ray.tables.calls import Call
from dlogp_ray.tables.run import Run

_WRITE_S = 2.0
"""What the last record of a stopped call may take: a store may be silent, and a stop is quick."""


@contextmanager
def recorded(
    call: Callable[[], Call],
    run: Run,
    clock: Clock,
    phase: str,
    before: int,
    stop: StopRequest,
) -> Iterator[None]:
    """Within it, a call does the work that its record is about.

    Args:
        call: The record as it stands.
        run: That it works on.
        clock: Of the call.
        phase: What its time goes into.
        before: Objects that were there before. What a stopped call has created is what is there
            more: not all of its processes tell it in time.
        stop: Whether SIGTERM came.
    """
    call().write(run.uri)
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        clock.lap(phase)
        stopped = "SIGTERM" if stop.came else "SIGINT"

        def write() -> None:
            with suppress(Exception):  # what stopped the call is what is told
                created = len(run.committed()) - before
                said = {"stopped": stopped, "units_created": created, "spent": clock.spent}
                call().model_copy(update=said).write(run.uri)

        writing = threading.Thread(target=write, daemon=True)
        writing.start()
        writing.join(_WRITE_S)
        raise


def record_end(call: Call, run_uri: str, clock: Clock, created: int) -> None:
    """Write that the call has come to its end."""
    said = {"ended": True, "units_created": created, "spent": clock.spent}
    call.model_copy(update=said).write(run_uri)
