"""How a run gets on, from its objects alone: wherever its job runs, and whoever looks."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.tables.object_names import UNITS
from dlogp_ray.tables.run import Run

_WINDOW = 20
"""Sightings that the speed is taken over."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        units: Planned.
        units_done: Those whose object is there.
        units_failed: Those that could not be done so far.
        tokens: Prompt and response tokens of the corpus, about; answers of an intervene job.
        tokens_done: Those of the units done.
        tokens_per_s: While it was watched; None where nothing was seen to come.
        seconds_left: At that speed.
        sealed: Whether the run has ended.
        counts: What ``tokens`` counts.
    """

    units: int
    units_done: int
    units_failed: int
    tokens: int
    tokens_done: int
    tokens_per_s: float | None
    seconds_left: float | None
    sealed: bool
    counts: str = "tokens"

    def as_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def __str__(self) -> str:
        """One line."""
        parts = [f"{self.units_done:,} of {self.units:,} units"]
        parts[0] += f" ({self.tokens_done / max(self.tokens, 1):.1%} of the {self.counts})"
        if self.units_failed:
            parts.append(f"{self.units_failed:,} failed")
        if self.sealed:
            parts.append("sealed")
        elif self.tokens_per_s is not None and self.seconds_left is not None:
            hours, minutes = divmod(round(self.seconds_left / 60), 60)
            parts.append(f"{self.tokens_per_s:,.0f} {self.counts}/s")
            parts.append(f"{hours} h {minutes:02} min left")
        return ", ".join(parts)


def watch(
    run: Run,
    every_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Progress]:
    """Look at a run now and then, until it is sealed.

    Each look is a listing of its objects.

    Args:
        run: Begun.
        every_s: Seconds between two looks.
        clock: Seconds that pass.
        sleep: Lets them pass.

    Raises:
        Refused: The store gives no access.
        Damaged: The run's list of units is missing, or another one.
    """
    tokens = _tokens_of_units(run)
    seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
    while True:
        sealed = run.sealed  # before the listing, so that one that is sealed is complete
        index = run.committed().index
        done = int(tokens[index[index < len(tokens)]].sum())
        seen.append((clock(), done))
        (since, before), (now, _) = seen[0], seen[-1]
        speed = (done - before) / (now - since) if done > before else None
        total = int(tokens.sum())
        yield Progress(
            units=run.planned,
            units_done=len(index),
            units_failed=sum(1 for _ in store.list_objects(run.path("failed"))),
            tokens=total,
            tokens_done=done,
            tokens_per_s=speed,
            seconds_left=(total - done) / speed if speed else None,
            sealed=sealed,
            counts=run.kind.counts,
        )
        if sealed:
            return
        sleep(every_s)


def _tokens_of_units(run: Run) -> npt.NDArray[np.int64]:
    """Prompt and response tokens of each unit, about."""
    data = run.beginning(UNITS)
    tokens: npt.NDArray[np.int64] = pq.read_table(pa.BufferReader(data))["tokens"].to_numpy()
    return tokens
