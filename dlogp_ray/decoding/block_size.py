"""How many tokens to draft before the other policy checks them: what pays most, as measured.

A block of k drafts keeps (1 − (1 − f)^k) / f tokens where each is replaced with probability f, and
takes a + b·k seconds; f, a and b are those of the latest blocks. (Where what is drawn again is the
draft once more, nothing is replaced.)
"""

import numpy as np

LARGEST = 16
_TRIED_FIRST = (1, 4, 8, 2)
"""So that the first blocks tell how their time grows with their size."""
_MEMORY = 0.97
"""The weight of a block, after each that follows."""
_GOOD = 0.95
"""The smallest block that is nearly the best: around the best the speed is flat, and the larger the
blocks, the further texts that are cut often fall behind, to be decoded in a batch of few at the
end."""


def kept_tokens(k: int, rate: float) -> float:
    """Tokens that a block of ``k`` drafts adds: up to the first that is replaced, with it."""
    return float(k) if rate <= 0 else (1 - (1 - rate) ** k) / rate


class BlockSize:
    """The best k so far.

    Args:
        fixed: Always this one, where given.
    """

    def __init__(self, fixed: int | None = None) -> None:
        """Nothing is measured yet."""
        self._fixed = fixed
        self._blocks = 0
        self._replaced, self._checked = 0.0, 0.0
        self._sums = np.zeros((2, 2))
        self._seconds = np.zeros(2)

    @property
    def rate(self) -> float:
        """The share of checked tokens that were replaced, lately."""
        return self._replaced / self._checked if self._checked else 0.0

    def next(self) -> int:
        """How many tokens to draft now."""
        if self._fixed is not None:
            return self._fixed
        if self._blocks < len(_TRIED_FIRST):
            return _TRIED_FIRST[self._blocks]
        (fixed_s, token_s), *_ = np.linalg.lstsq(self._sums, self._seconds, rcond=None)
        sizes = range(1, LARGEST + 1)
        # A noisy fit must not promise blocks for nothing.
        least_s = 0.05 * float(self._seconds[0] / self._sums[0, 0])
        speeds = [kept_tokens(k, self.rate) / max(fixed_s + token_s * k, least_s) for k in sizes]
        return next(k for k, v in zip(sizes, speeds, strict=True) if v >= _GOOD * max(speeds))

    def record(self, k: int, seconds: float, checked: int, replaced: int) -> None:
        """One block was done.

        Args:
            k: Its size.
            seconds: What it took.
            checked: Tokens that were kept, the replaced ones among them.
            replaced: How many of them were replaced by others, which cut a block short.
        """
        self._blocks += 1
        terms = np.array([1.0, k])
        self._sums = _MEMORY * self._sums + np.outer(terms, terms)
        self._seconds = _MEMORY * self._seconds + seconds * terms
        self._checked = _MEMORY * self._checked + checked
        self._replaced = _MEMORY * self._replaced + replaced
