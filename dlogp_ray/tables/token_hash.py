"""The hash that joins tables to texts, whoever tokenised them."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

_BYTES = 16


def token_hash(ids: Sequence[int] | np.ndarray[Any, Any]) -> str:
    """BLAKE2b (16 bytes, hex) of token ids as little-endian int32."""
    data = np.asarray(ids, dtype="<i4").tobytes()
    return hashlib.blake2b(data, digest_size=_BYTES).hexdigest()
