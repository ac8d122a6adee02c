"""SIGTERM stops the main thread even where the exception that it raises is dropped."""

import os
import signal
import threading
from contextlib import suppress

import pytest

from dlogp_ray.errors import Stopped
from dlogp_ray.pipelines.run.stop import stop_on_sigterm


def run_until_sigterm(swallow: type[BaseException] | None = None) -> None:
    with stop_on_sigterm() as stop:
        stop.check()
        with suppress(*([swallow] if swallow else [])):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        stop.check()


def test_sigterm_raises_stopped_and_the_handler_from_before_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="the same command goes on"):
        run_until_sigterm()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("swallow", [Exception, BaseException])
def test_a_stop_that_is_handled_or_dropped_on_the_way_is_not_lost(
    swallow: type[BaseException],
) -> None:
    with pytest.raises(Stopped):
        run_until_sigterm(swallow)


def test_an_interrupt_that_is_not_sigterm_passes() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_sigterm():
        raise KeyboardInterrupt


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def inside() -> None:
        with stop_on_sigterm() as stop:
            stop.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]
