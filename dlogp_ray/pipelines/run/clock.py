"""Where a job's time went: seconds by what they went into, which add up to the whole."""

import time

PHASES = ("start", "plan", "probe", "noise floor", "units", "seal")
"""Of a job with policies: waiting for Ray, what ``--plan`` finds out without policies, loading and
trying them, measuring the noise floor, the units with their actors' loading, the end."""


class Clock:
    """Seconds since it was made."""

    def __init__(self, phases: tuple[str, ...] = PHASES) -> None:
        """Nothing is spent yet."""
        self._started = self._last = time.monotonic()
        self._spent = dict.fromkeys(phases, 0.0)

    def lap(self, phase: str) -> None:
        """All since the last lap went into ``phase``."""
        now = time.monotonic()
        self._spent[phase] += now - self._last
        self._last = now

    def move(self, seconds: float, before: str, after: str) -> None:
        """So much of ``before`` went into ``after``."""
        self._spent[before] -= seconds
        self._spent[after] += seconds

    @property
    def seconds(self) -> float:
        """In all, up to the last lap."""
        return self._last - self._started

    @property
    def spent(self) -> dict[str, float]:
        """Phase -> seconds, up to the last lap; to the tenth."""
        return {phase: round(seconds, 1) for phase, seconds in self._spent.items()}
