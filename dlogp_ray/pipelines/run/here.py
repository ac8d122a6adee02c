"""A job in this process: no other is started, and one unit is done after the other.

The next unit is read, and the last one's object written, in threads beside the actor's work. What
is under way stands in the call's record: where a unit takes this process with it, the next call
sees it.
"""

import gc
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Self, TypeVar

from dlogp_ray.config import RunConfig
from dlogp_ray.corpus.units import Unit
from dlogp_ray.errors import DlogpError, Refused
from dlogp_ray.pipelines.run.executor import Actor, Stages
from dlogp_ray.pipelines.run.job import Job
from dlogp_ray.pipelines.run.machine import cpus, free_bytes
from dlogp_ray.pipelines.run.placement import Node, Placement, place_actors
from dlogp_ray.pipelines.run.row import Row, failure
from dlogp_ray.tables.calls import this_call

T = TypeVar("T")

_RAY_SHARE = 0.7
"""Of free memory, what a Ray of this machine gives to processes; its object store has the rest."""


def resources() -> dict[str, float]:
    """Of this machine, as Ray counts them."""
    import torch  # which weighing needs not: seconds, and 300 MB

    return {"CPU": cpus(), "GPU": torch.cuda.device_count()}


class Here:
    """Does a job's work in this process.

    Args:
        died: Unit -> how often a process has died with it under way.
        alone: Whether the units are done here; else the policies are tried here for actors of a
            Ray of this machine, or it is not known yet.
    """

    def __init__(self, died: Counter[str], *, alone: bool = False) -> None:
        """Nothing is loaded."""
        self.call = this_call("here")
        self.died = died
        self._alone = alone
        self._tried: Actor | None = None
        self._threads: int | None = None

    def alone(self) -> Self:
        """The same, for the units."""
        self._alone = True
        return self

    def release(self) -> None:
        """Give back what was tried."""
        self._tried = None
        gc.collect()
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)

    def place(
        self, config: RunConfig, threads: int | None = None, *, progress: bool = False
    ) -> Placement:
        """As a Ray of this machine would place them; one, where the units are done here."""
        import torch

        if self._threads is None:
            self._threads = torch.get_num_threads()
        placed = place_actors(config, resources(), threads, where="machine")
        return replace(placed, min_actors=1, max_actors=1) if self._alone else placed

    def everywhere(self) -> Placement:
        """In this process."""
        return Placement(1, 1, cpus=1.0, gpus=0.0)

    def node(self) -> Node:
        """This machine, as Ray would describe it."""
        return Node(cpus(), _RAY_SHARE * free_bytes())

    def attempt(
        self, placement: Placement, work: Callable[..., tuple[T, Actor]], *arguments: object
    ) -> T:
        """What ``work`` finds out; what it has loaded is kept for the units."""
        try:
            answer, self._tried = work(*arguments)
        except DlogpError:
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise Refused(f"the policies can't be tried: {cause}") from error
        return answer

    @contextmanager
    def doing(self, job: Job, stages: Stages, placement: Placement) -> Iterator["_Execution"]:
        """With what was tried, where that is what the job needs."""
        tried, self._tried = self._tried, None
        if stages.actor is not None and (tried is None or not tried.adopt(job)):
            del tried
            spread = placement.gpus > 1
            tried = stages.actor(job, placement.device, placement.threads, spread=spread)
        try:
            yield _Execution(job, stages, tried, self)
        finally:
            del tried
            self.release()


class _Execution:
    wave = 10_000

    def __init__(self, job: Job, stages: Stages, actor: Actor | None, here: Here) -> None:
        self._job, self._actor, self._here = job, actor, here
        self._read = partial(stages.read, job=job)
        self._write = partial(stages.write, job=job)

    def waiting(self, units: int) -> None:
        pass

    def receipts(self, units: Sequence[Unit]) -> Generator[Row]:
        """Units that a process died with come last, each with no other beside it."""
        suspects = [unit for unit in units if unit.name in self._here.died]
        yield from self._side_by_side([unit for unit in units if unit.name not in self._here.died])
        for unit in sorted(suspects, key=lambda unit: self._here.died[unit.name]):
            attempts = self._here.died[unit.name]
            if attempts < self._job.max_unit_attempts:
                yield from self._side_by_side([unit])
            else:
                cause = f"the process that did it died in each of {attempts} attempts"
                yield self._write(failure(unit.index, cause))

    def _side_by_side(self, units: Sequence[Unit]) -> Generator[Row]:
        try:
            yield from self._in_turn(units)
        finally:  # whatever ends this but the process's death
            self._under_way([])

    def _in_turn(self, units: Sequence[Unit]) -> Generator[Row]:
        with ThreadPoolExecutor(1, "read") as reading, ThreadPoolExecutor(1, "write") as writing:
            read, written = deque[Future[Row]](), deque[tuple[Unit, Future[Row]]]()
            for at, unit in enumerate(units):
                ahead = units[at + len(read) : at + 2]
                self._under_way([before for before, _ in written] + [unit, *units[at + 1 : at + 2]])
                read.extend(reading.submit(self._read, asdict(coming)) for coming in ahead)
                row = read.popleft().result()
                if self._actor is not None:
                    row = self._actor(row)
                row.pop("counts", None)
                written.append((unit, writing.submit(self._write, row)))
                while len(written) > 1 or (written and written[0][1].done()):
                    yield written.popleft()[1].result()
            while written:
                yield written.popleft()[1].result()

    def _under_way(self, units: Sequence[Unit]) -> None:
        names = tuple(unit.name for unit in units)
        self._here.call = self._here.call.model_copy(update={"under_way": names})
        self._here.call.write(self._job.run_uri)
