"""Progress of a job: a bar with tokens/s and time left; without a terminal, a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0


class Advancing(Protocol):
    """A bar of units."""

    def advance(self, tokens: int, seconds: float) -> None:
        """One more, with so much in it, about, and what an actor worked on it."""


class UnitProgress:
    """Counts units, and what is in them, as they are committed.

    The rate is since the work on the first of them began: what actors need to start, to load and
    to compile is none of it.

    Args:
        units: How many are to be done.
        tokens: What is in them, about: prompt and response tokens where nothing else is said.
        counts: What that is.
        enabled: False shows nothing.
    """

    def __init__(self, units: int, tokens: int, counts: str = "tokens", *, enabled: bool) -> None:
        """Nothing is shown before the context is entered."""
        self._units, self._tokens, self._counts = units, tokens, counts
        self._enabled = enabled
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("doing"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[units]} units"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task("", total=tokens, units=f"0/{units}", rate="")
        self._done_units = self._done_tokens = 0
        self._started: float | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        """Show the bar."""
        self._last_line = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()

    def advance(self, tokens: int, seconds: float) -> None:
        """One more unit, with so much in it, about, and what an actor worked on it."""
        now = time.monotonic()
        if self._started is None:
            self._started = now - seconds
        self._done_units += 1
        self._done_tokens += tokens
        rate = self._done_tokens / max(now - self._started, 1e-9)
        units, speed = f"{self._done_units}/{self._units}", f"{rate:,.0f} {self._counts}/s"
        self._bar.update(self._task, completed=self._done_tokens, units=units, rate=speed)
        due = now - self._last_line > LINE_EVERY_S or self._done_units == self._units
        if self._enabled and not sys.stderr.isatty() and due:
            left_s = (self._tokens - self._done_tokens) / max(rate, 1e-9)
            self._console.print(
                f"done {units} units, {speed}, {max(left_s, 0):,.0f} s left", highlight=False
            )
            self._last_line = now


class CountedUnits:
    """``counted``, of units.

    Args:
        what: That is done.
        total: How many.
        unit: What they are.
        enabled: False shows nothing.
    """

    def __init__(self, what: str, total: int, unit: str, *, enabled: bool) -> None:
        """Nothing is shown before the context is entered."""
        self._bar = counted(what, total, unit, enabled=enabled)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._step = self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave it as it stands."""
        self._bar.__exit__(*error)

    def advance(self, tokens: int, seconds: float) -> None:
        """One more."""
        self._step()


@contextmanager
def counted(what: str, total: int, unit: str, *, enabled: bool) -> Iterator[Callable[[], None]]:
    """A bar that counts to ``total`` on a terminal; what is yielded is called at each step."""
    bar = Progress(
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (enabled and sys.stderr.isatty()),
    )
    task = bar.add_task("", total=total)
    with bar:
        yield lambda: bar.advance(task)
