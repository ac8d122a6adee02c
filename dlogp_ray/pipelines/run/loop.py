"""The loop of a job over its units: each is done until it has an object or an error.

    descriptors -> read and check -> score or decode -> create the object -> receipts

Where the stages run is the executor's: Ray's processes (``chain``), or this one (``here``). A unit
that is lost with its process goes to the end of the queue, and another process tries it.
"""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dlogp_ray import store
from dlogp_ray.corpus.units import Unit, Units
from dlogp_ray.events import say
from dlogp_ray.pipelines.run.executor import Ended, Executor, Stages
from dlogp_ray.pipelines.run.failures import Failure
from dlogp_ray.pipelines.run.job import Job
from dlogp_ray.pipelines.run.placement import Placement
from dlogp_ray.pipelines.run.progress import Advancing
from dlogp_ray.pipelines.run.stop import StopRequest


@dataclass
class Outcome:
    """What came of some units.

    Attributes:
        created: How many objects were created here.
        uncompiled: Units that were scored where ``torch.compile`` had given up on a function.
        ended: Why Ray ended the job before all were tried as often as they may; None if not.
    """

    created: int = 0
    uncompiled: int = 0
    ended: str | None = None


def do_units(
    job: Job,
    stages: Stages,
    executor: Executor,
    placement: Placement,
    units: Units,
    stop: StopRequest,
    outcome: Outcome,
    *,
    failed: Callable[[Failure], object],
    bar: AbstractContextManager[Advancing],
) -> None:
    """Do ``units``, each until it has an object or an error, or has died in every attempt.

    Args:
        job: With what was measured and chosen for it.
        stages: What becomes of each.
        executor: Where that is done.
        placement: Of the actors.
        units: What is missing.
        stop: Asked after each unit.
        outcome: Where it is told what comes of them, from unit to unit.
        failed: Called with each that was tried as often as it may and has no object.
        bar: Shows how far it is.

    Raises:
        Stopped: SIGTERM came.
        OSError: The store can't be asked what is there.
    """
    fresh, again, attempts = iter(units), list[Unit](), Counter[int]()
    left = len(units)
    with (
        executor.doing(job, stages, placement) as execution,
        ExitStack() as stack,
        bar as shown,
    ):
        while True:
            wave = list(islice(fresh, execution.wave))
            if not wave:
                wave, again = again, []
            if not wave:
                return
            under_way = {unit.index: unit for unit in wave}
            execution.waiting(left)
            try:
                receipts = stack.enter_context(closing(execution.receipts(wave)))
                for receipt in receipts:
                    unit = under_way.pop(int(receipt["index"]))
                    outcome.created += bool(receipt["created"])
                    outcome.uncompiled += bool(receipt["uncompiled"])
                    if receipt["error"]:
                        tried = attempts[unit.index] + 1
                        failed(Failure(unit, receipt["error"], tried, receipt["code"]))
                    left -= 1
                    execution.waiting(left)
                    _say_done(unit, receipt)
                    shown.advance(unit.tokens, receipt["seconds"])
                    stop.check()
            except Ended as error:
                outcome.ended = str(error)
                say("ended by Ray", logging.ERROR, cause=outcome.ended)
                return
            attempts.update(under_way.keys())
            lost = [u for u in under_way.values() if not store.exists(job.folder.uri(u.name))]
            for unit in lost:
                tried = attempts[unit.index]
                say("unit lost", logging.WARNING, unit=unit.name, attempts=tried)
                if tried < job.max_unit_attempts:
                    again.append(unit)
                else:
                    cause = f"the process that did it died in each of {tried} attempts"
                    failed(Failure(unit, cause, tried))


def _say_done(unit: Unit, receipt: dict[str, Any]) -> None:
    if receipt["error"]:
        say("unit failed", logging.ERROR, unit=unit.name, cause=receipt["error"])
        return
    names = ("created", "rows", "rejected", "tokens", "seconds", "uncompiled")
    say("unit done", unit=unit.name, **{name: receipt[name] for name in names})
