"""Many small requests side by side, whose answers are used one after the other."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


def map_ahead(
    work: Callable[[_Item], _Answer], items: Iterable[_Item], threads: int
) -> Iterator[_Answer]:
    """``map`` in so many threads, no further ahead than twice their number.

    (``ThreadPoolExecutor.map`` takes all items at once: a gigabyte of a million.)

    Yields:
        The answers, in the order of the items.
    """
    left = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[_Answer]] = deque(
            pool.submit(work, item) for item in islice(left, 2 * threads)
        )
        try:
            while under_way:
                yield under_way.popleft().result()
                under_way.extend(pool.submit(work, item) for item in islice(left, 1))
        finally:
            for future in under_way:
                future.cancel()
