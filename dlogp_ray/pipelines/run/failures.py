"""Units that could not be done, as ``failed/<unit>.json`` from the moment that it is known."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

from dlogp_ray import store
from dlogp_ray.corpus.units import Unit
from dlogp_ray.errors import ExitCode, Unanswered


@dataclass(frozen=True)
class Failure:
    """A unit that could not be done.

    Attributes:
        unit: Which.
        cause: What it reported, or what became of its process.
        attempts: How often it was tried.
        code: What a job ends with for it alone.
    """

    unit: Unit
    cause: str
    attempts: int
    code: int = ExitCode.FAILED_UNITS


class Failures:
    """Failures of one call, and their records in the run.

    Args:
        run_uri: Address of the run.
    """

    def __init__(self, run_uri: str) -> None:
        """None yet; earlier calls' records stay until ``settle``."""
        self._folder = f"{run_uri}/failed"
        self._failed: dict[str, Failure] = {}

    def add(self, failure: Failure) -> None:
        """Record one."""
        name, cause = failure.unit.name, failure.cause
        try:
            said = {name: said for name, said in asdict(failure).items() if name != "code"}
            record = json.dumps(said, indent=2).encode()
            store.replace(f"{self._folder}/{name}.json", record)
        except (OSError, Unanswered) as error:
            # A full disk for one: the causes are told all the same.
            cause += f" (and that could not be recorded: {error})"
        self._failed[name] = replace(failure, cause=cause)

    def settle(self, committed: Collection[str]) -> dict[str, Failure]:
        """Take back what is recorded of units that have an object: another job's perhaps.

        Args:
            committed: Units whose object is there.

        Returns:
            This call's units without an object.

        Raises:
            OSError: The store can't be asked, or can't delete.
        """
        for name, _ in store.list_objects(self._folder):
            if name.removesuffix(".json") in committed:
                store.delete(f"{self._folder}/{name}")
        return {name: failure for name, failure in self._failed.items() if name not in committed}
