"""float32 numbers as integers in their order, for counting by leading bits.

The place of a number among all float32 numbers: as its bits read as an integer, with the sign bit
set where it is positive, and all bits turned over where it is negative. −0.0 lies just below 0.0.
"""

import numpy as np
from jaxtyping import Float32, Shaped, UInt32

_SIGN = np.uint32(1 << 31)


def places(values: Shaped[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """The place of each number, taken as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def numbers(places: UInt32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """The reverse."""
    return np.where(places & _SIGN, places ^ _SIGN, ~places).view(np.float32)
