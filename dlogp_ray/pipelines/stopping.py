"""A clean end on SIGTERM: a stopped Ray job and a lost spot node get it seconds before the end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dlogp_ray.errors import Stopped


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Raise ``Stopped`` in the main thread when SIGTERM comes; elsewhere do nothing.

    Ray's own handler, which exits at once, is put back afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM; what is committed stays, the same command goes on")

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
