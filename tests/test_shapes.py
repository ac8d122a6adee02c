"""The checks of annotated shapes: that they are made."""

import jaxtyping
import pytest
import shapes
import torch

from dlogp_ray.decoding.distribution import Distribution


def test_a_wrong_shape_is_an_error_at_first_and_now_and_then() -> None:
    right, wrong = Distribution(torch.zeros(2, 3)), torch.zeros(2, dtype=torch.int64)
    for _ in range(shapes.FIRST):
        with pytest.raises(jaxtyping.TypeCheckError):
            right.logp_of(wrong)
    found = 0
    for _ in range(shapes.THEN):
        try:
            right.logp_of(wrong)
        except jaxtyping.TypeCheckError:
            found += 1
        except (RuntimeError, IndexError):  # torch's own word, where nothing was checked
            continue
    assert found == 1
