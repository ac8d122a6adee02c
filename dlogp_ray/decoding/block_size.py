"""How many tokens to draft before the other policy checks them: what pays most, as measured.

A block of k drafts keeps (1 − (1 − f)^k) / f tokens where each is replaced with probability f. It
takes k passes of one token a text, and one pass of k tokens a text; f is measured for each text,
the seconds on the latest blocks. (Where what is drawn again is the draft once more, nothing is
replaced.)
"""

from dataclasses import astuple, dataclass

import numpy as np

LARGEST = 16
_FIRST = 4
_MEMORY = 0.95
"""The weight of a block, after each that follows."""
_GOOD = 0.98
"""The smallest block that is nearly the best: what was measured is noisy."""
_PRIOR = 100
"""Tokens after which a text's own rate counts as much as that of all."""


def kept_tokens(k: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Tokens that a block of ``k`` drafts adds: up to the first that is replaced, with it."""
    # Away from 0 and 1, where the formula has no value and its limits are meant: k and 1.
    rate = np.clip(rate, 1e-9, 1 - 1e-9)
    kept: np.ndarray = -np.expm1(k * np.log1p(-rate)) / rate
    return kept


@dataclass
class _Sums:
    """Of the latest blocks, the last one weighing most.

    Attributes:
        blocks: How many.
        drafts: Passes of one token a text.
        draft_s: What they took.
        rest_s: What neither drafts nor checks took.
        checks: Passes of several tokens a text.
        further: Their tokens a text beyond the first.
        check_s: What they took, with asking the rules.
        written: Tokens that were kept.
        replaced: How many of them are not the draft.
    """

    blocks: float = 0.0
    drafts: float = 0.0
    draft_s: float = 0.0
    rest_s: float = 0.0
    checks: float = 0.0
    further: float = 0.0
    check_s: float = 0.0
    written: float = 0.0
    replaced: float = 0.0


class BlockSize:
    """The best k so far.

    Args:
        fixed: Always this one, where given.
    """

    def __init__(self, fixed: int | None = None) -> None:
        """Nothing is measured yet."""
        self._fixed = fixed
        self._sums = _Sums()

    def next(self, written: np.ndarray, replaced: np.ndarray, left: np.ndarray, more: bool) -> int:
        """How many tokens to draft now.

        Args:
            written: [n] tokens of each answer so far.
            replaced: [n] how many of them replaced a draft.
            left: [n] tokens that it may still have.
            more: Whether other texts wait for rows: then what counts are tokens per second, and
                otherwise when the last of these texts is done, the one that is replaced most.
        """
        if self._fixed is not None:
            return self._fixed
        sums = self._sums
        if not sums.blocks:
            return _FIRST
        sizes = np.arange(1, LARGEST + 1)
        rate = sums.replaced / sums.written
        rates = (replaced + _PRIOR * rate) / (written + _PRIOR)
        kept = np.minimum(kept_tokens(sizes, rates[:, None]), left[:, None])
        speeds = (kept.sum(0) if more else 1 / (left[:, None] / kept).max(0)) / self._seconds(sizes)
        return int(sizes[speeds >= _GOOD * speeds.max()][0])

    def _seconds(self, sizes: np.ndarray) -> np.ndarray:
        """What blocks of these sizes take."""
        sums = self._sums
        draft_s = sums.draft_s / sums.drafts
        seconds: np.ndarray = sums.rest_s / sums.blocks + sizes * draft_s
        if sums.further:
            # To check one token of each text takes as long as to draft it.
            further_s = max(0.0, sums.check_s - sums.checks * draft_s) / sums.further
            seconds += draft_s + (sizes - 1) * further_s
        return seconds

    def record(
        self, k: int, *, draft_s: float, check_s: float, rest_s: float, written: int, replaced: int
    ) -> None:
        """One block was done.

        Args:
            k: Its size.
            draft_s: What drafting took.
            check_s: What checking took; 0 where nothing was checked.
            rest_s: What all else took.
            written: Tokens that were kept, the replaced ones among them.
            replaced: How many of them were replaced by others, which cut a block short.
        """
        told = _Sums(1.0, float(k), draft_s, rest_s)
        told.written, told.replaced = float(written), float(replaced)
        if check_s and k > 1:
            told.checks, told.further, told.check_s = 1.0, float(k - 1), check_s
        both = zip(astuple(self._sums), astuple(told), strict=True)
        self._sums = _Sums(*(_MEMORY * before + now for before, now in both))
