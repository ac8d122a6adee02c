"""Kills a process at a point of the storage boundary: for a PYTHONPATH that a test sets.

Python imports it at its start, in drivers and Ray's workers alike. DLOGP_TESTS_KILL names the
point: {"operation": "create" | "replace" | "delete", "name": end of the address as a regular
expression, "when": "before" | "during" | "after", "victim": "self" | "driver", "flag": a file that
is made by the first that comes there}. With DLOGP_TESTS_STUB, score jobs have no policies
(``stub_policies``).
"""

import json
import os
import re
import signal
import sys
import threading
import time

_POINT = json.loads(os.environ.get("DLOGP_TESTS_KILL", "null"))
_UNDER_WAY = threading.local()


def _kill() -> None:
    """The first that comes here kills."""
    try:
        os.close(os.open(_POINT["flag"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    victim = os.getpid() if _POINT["victim"] == "self" else int(os.environ["DLOGP_TESTS_DRIVER"])
    os.kill(victim, signal.SIGKILL)
    time.sleep(60)  # a worker ends with its driver's cluster


def _install() -> None:
    import dlogp_ray.store
    from dlogp_ray.store import objects

    operation, when = _POINT["operation"], _POINT["when"]
    plain = getattr(objects, operation)

    def wrapped(uri: str, *args: object, **kwargs: object) -> object:
        meant = re.search(_POINT["name"] + "$", uri) is not None
        if meant and when == "before":
            _kill()
        _UNDER_WAY.meant = meant
        try:
            return plain(uri, *args, **kwargs)
        finally:
            _UNDER_WAY.meant = False
            if meant and when == "after":
                _kill()

    setattr(objects, operation, wrapped)
    setattr(dlogp_ray.store, operation, wrapped)
    if when == "during":
        # On a disk: what is written has another name still.
        for name in ("link", "replace"):

            def halted(*args: object, call: object = getattr(os, name), **kwargs: object) -> object:
                if getattr(_UNDER_WAY, "meant", False):
                    _kill()
                return call(*args, **kwargs)  # type: ignore[operator]

            setattr(os, name, halted)


if "DLOGP_TESTS_STUB" in os.environ and {"score", "jobs/score.py"} & {*sys.argv}:
    import stub_policies

    stub_policies.install()
if _POINT is not None:
    if _POINT["victim"] == "driver" and "score" in sys.argv:
        os.environ["DLOGP_TESTS_DRIVER"] = str(os.getpid())  # its Ray's workers inherit that
    _install()
