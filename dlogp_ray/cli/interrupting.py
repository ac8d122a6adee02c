"""Ctrl-C while a library works that Python can't stop: its own way to be interrupted is called."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible(interrupt: Callable[[], object]) -> Iterator[None]:
    """Call ``interrupt`` when SIGINT comes, from a thread of its own.

    Python's handlers wait for what the main thread is in, and DuckDB does not look for signals in
    all that it does: a product of three tables went on for minutes. A signal's byte comes at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)

    def watch() -> None:
        while came := os.read(told, 1):
            if came[0] == signal.SIGINT:
                interrupt()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)
        watcher.join()
        os.close(told)
