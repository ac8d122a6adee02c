"""Sums of objects: the same to the last bit here and by Ray, however tasks are cut and end."""

import time
import zlib
from collections.abc import Sequence
from typing import Literal

import pytest

from dlogp_ray.pipelines.run import ray_fold as adding
from dlogp_ray.pipelines.run.for_tables import added_up
from dlogp_ray.pipelines.run.tree import FAN_IN

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def look(uri: str) -> str:
    time.sleep(zlib.crc32(uri.encode()) % 50 / 1_000)  # so that they end in another order
    return uri


def add(parts: Sequence[str]) -> str:
    """Says what was added to what: no order of adding is as good as another."""
    return f"({'+'.join(parts)})"


@pytest.mark.parametrize("objects", [1, 7, 8, 9, 70, FAN_IN**2 + 1])
def test_objects_are_added_in_an_order_that_follows_from_their_number(
    objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"o{index}" for index in range(objects)]
    found = {added_up(names, look, add, "here", progress=False)}
    for tasks_per_cpu in (1, 2, 16, 1_000):
        monkeypatch.setattr(adding, "TASKS_PER_CPU", tasks_per_cpu)
        found.add(added_up(names, look, add, "ray", progress=False))
    (one,) = found
    assert one.replace("(", "").replace(")", "").split("+") == names


@pytest.mark.parametrize("where", ["here", "ray"])
def test_neighbours_are_added_from_the_first_on(where: Literal["here", "ray"]) -> None:
    assert added_up([], look, add, where, progress=False) == "()"
    names = [f"o{index}" for index in range(FAN_IN + 2)]
    eight = "(((((((o0+o1)+o2)+o3)+o4)+o5)+o6)+o7)"
    assert added_up(names, look, add, where, progress=False) == f"({eight}+(o8+o9))"
