"""What adds up, of all objects of a run: each is looked at once, and the sums meet in a tree.

    objects -> sums of FAN_IN neighbours -> sums of FAN_IN of these -> ... -> one

The tree follows from the number of objects alone, and neighbours are added from the first on: a sum
of roundings is the same to the last bit, wherever it is done and whatever ends first.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import TypeVar

Object = TypeVar("Object")
T = TypeVar("T")

FAN_IN = 8


def in_order(add: Callable[[Sequence[T]], T], parts: Iterable[T]) -> T:
    """The sum of parts, from the first on."""
    return reduce(lambda whole, part: add([whole, part]), parts)


def sum_of(
    objects: Sequence[Object], look: Callable[[Object], T], add: Callable[[Sequence[T]], T]
) -> T:
    """The sum of the tree over some objects, of which few are in memory at once."""
    if len(objects) == 1:
        return look(objects[0])
    share = 1
    while share * FAN_IN < len(objects):
        share *= FAN_IN
    parts = (objects[at : at + share] for at in range(0, len(objects), share))
    return in_order(add, (sum_of(part, look, add) for part in parts))
