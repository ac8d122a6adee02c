"""A clean end on SIGTERM: a stopped Ray job and a lost spot node get it seconds before the end."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from dlogp_ray.errors import ExitCode, Stopped
from dlogp_ray.events import tell


class StopRequest:
    """Whether SIGTERM came."""

    def __init__(self, then: str) -> None:
        """Not yet."""
        self.came = False
        self._then = then

    def check(self) -> None:
        """Raise ``Stopped`` if it came.

        The exception that the signal raises can get lost: where it meets a callback or a
        finaliser of a library, Python or the library drops it. So a long loop asks in between.
        """
        if self.came:
            raise Stopped(f"stopped by SIGTERM; {self._then}")


@contextmanager
def stop_on_sigterm(
    then: str = "what is committed stays, the same command goes on",
) -> Iterator[StopRequest]:
    """Raise ``Stopped`` when SIGTERM comes, in the main thread; elsewhere do nothing.

    What the signal itself raises is a ``KeyboardInterrupt``, which libraries let through where
    they would handle an ``Exception``. Ray's own handler, which exits at once, is put back
    afterwards.

    Args:
        then: What has become of what was done, for people.
    """
    request = StopRequest(then)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        request.came = True
        signal.alarm(0)  # by which Ray's core would abort the process 3 s later (``take_back``)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield request
    except KeyboardInterrupt:
        request.check()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def to_the_end() -> Iterator[None]:
    """What is within it is not cut short by Ctrl-C: processes that it ends would live on.

    One that comes is answered; at the next this process ends at once, with those that it started.
    Elsewhere than in the main thread nothing comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = 0

    def again(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came += 1
        if came == 1:
            tell("ending", "ending the processes that were started; Ctrl-C again ends them at once")
            return
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        os._exit(ExitCode.INTERRUPTED)

    previous = signal.signal(signal.SIGINT, again)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def take_back() -> None:
    """Have SIGTERM again where Ray's core, started in another thread, has taken it.

    Its handler prints a stack trace, calls ours, and aborts the process if that has not ended it
    within 3 s. In another thread than the main one nothing can be done.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)
