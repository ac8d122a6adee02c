"""float32 numbers as integers in their order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dlogp_ray.tables.float_order import numbers, places

FLOATS = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50)


@given(FLOATS)
def test_places_are_in_the_order_of_the_numbers_and_say_which(values: list[float]) -> None:
    array = np.array(values, np.float32)
    found = places(array)
    assert found.dtype == np.uint32
    assert numbers(found).tobytes() == array.tobytes()
    ordered = array[np.argsort(found)]
    assert (ordered[1:] >= ordered[:-1]).all()


def test_neighbours_are_one_apart() -> None:
    some = np.array([-np.inf, -1, -(2.0**-149), -0.0, 0.0, 1.0, 3e38], np.float32)
    up = places(np.nextafter(some, np.float32(np.inf))).astype(np.int64) - places(some)
    # nextafter takes -0.0 and 0.0 for one number.
    assert up.tolist() == [1, 1, 1, 2, 1, 1, 1]
