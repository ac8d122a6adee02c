"""Rollouts as trainers are given them: rows of a corpus with what a trainer needs."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dlogp_ray.errors import Refused


def by_others(generators: Sequence[str], policy: str, scored: Collection[str]) -> list[str]:
    """Those of the generators that are another policy than ``policy``.

    Where a text says that it is the policy's, all others are; where none does, the policy goes by
    another name there, and only those that were scored beside it are known to be others.
    """
    return [
        generator
        for generator in generators
        if generator != policy and (policy in generators or generator in scored)
    ]


def complete(
    rollouts: Iterable[Mapping[str, Any]], needed: Sequence[str]
) -> Iterator[Mapping[str, Any]]:
    """The rows, each with all columns that are needed.

    Raises:
        Refused: One lacks some; it is named by its place. Or there are no rows.
    """
    rows = iter(rollouts)
    first = next(rows, None)
    if first is None:
        raise Refused("rollouts: there are none")
    for place, row in enumerate(itertools.chain([first], rows)):
        if lacking := [name for name in needed if row.get(name) is None]:
            raise Refused(
                f"rollouts: row {place} has no {', '.join(lacking)}; expected {', '.join(needed)}"
            )
        yield row
