"""Room for a job in a cluster: what is waited for is said, and the wait can end.

Ray itself waits without a word, for ever: for nodes that never come, or for CPUs that another job
holds.
"""

import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from dlogp_ray.amounts import amount
from dlogp_ray.errors import Refused
from dlogp_ray.events import SAID_EVERY_S, SAID_FIRST_S, tell

_LOOKED_EVERY_S = 1.0


def wait_for_room(count: int, cpus: float, gpus: float, timeout_s: float | None = None) -> None:
    """Return when so many processes have room at once.

    A placement group asks for it, which a cluster that adds nodes hears; it is given back at once.

    Args:
        count: Of them.
        cpus: Of each.
        gpus: Of each.
        timeout_s: How long to wait; None for as long as it takes.

    Raises:
        Refused: There was none for so long.
    """
    each = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    group = placement_group([each] * count)
    started = time.monotonic()
    say_next = started + SAID_FIRST_S
    try:
        while not group.wait(_LOOKED_EVERY_S):
            now = time.monotonic()
            if timeout_s is not None and now - started > timeout_s:
                raise Refused(
                    f"no room in {timeout_s:g} s (timeout_start): {_needs(count, cpus, gpus)}"
                )
            if now >= say_next:
                what = _needs(count, cpus, gpus)
                tell("waiting for room", f"waiting for room: {what}", seconds=round(now - started))
                say_next = now + SAID_EVERY_S
    finally:
        remove_placement_group(group)


def _needs(count: int, cpus: float, gpus: float) -> str:
    there, free = ray.cluster_resources(), ray.available_resources()

    def of(name: str) -> str:
        return f"{amount(there.get(name, 0), name)} ({free.get(name, 0):g} free)"

    return (
        f"the job asks for {count} x {amount(cpus, 'CPU')} and {amount(gpus, 'GPU')}, and the "
        f"cluster has {of('CPU')} and {of('GPU')}"
    )
