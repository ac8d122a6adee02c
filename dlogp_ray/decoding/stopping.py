"""Where an answer ends by itself: stop tokens and stop strings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stops:
    """What ends an answer; the token that completes it belongs to the answer.

    Attributes:
        tokens: Ids, such as those that end a sequence.
        strings: Texts.
        decode: Ids -> text; needed where there are strings.
    """

    tokens: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = None

    def __post_init__(self) -> None:
        """Refuse strings that can't be looked for.

        Raises:
            ValueError: A string is empty, or there is no way to make text of ids.
        """
        if self.strings and self.decode is None:
            raise ValueError("stop strings need a tokenizer that makes text of ids")
        if "" in self.strings:
            raise ValueError("expected stop strings of at least one character, got an empty one")

    def first_token(self, drafts: np.ndarray) -> np.ndarray:
        """[n, k] ids -> [n]: the first place of a stop token, k where there is none."""
        is_stop = np.isin(drafts, self.tokens)
        first: np.ndarray = np.where(is_stop.any(1), is_stop.argmax(1), drafts.shape[1])
        return first

    def first_string(self, response: np.ndarray, start: int) -> int | None:
        """How long the answer is where it ends with the first stop string, None without one.

        Args:
            response: [length] the answer's ids.
            start: So many of them are known to hold none.
        """
        if not self.strings:
            return None
        # A string of b bytes spans b tokens that say something at most.
        most = max(len(string.encode()) for string in self.strings)
        for end in range(start + 1, len(response) + 1):
            text = self._text(response[max(0, end - most) : end])
            if any(string in text for string in self.strings):
                return end
        return None

    def at_end(self, response: np.ndarray) -> bool:
        """Whether the answer's last token ends it; none before it does."""
        if not len(response):
            return False
        if int(response[-1]) in self.tokens:
            return True
        return self.first_string(response, len(response) - 1) is not None

    def _text(self, ids: np.ndarray) -> str:
        assert self.decode is not None
        return self.decode(ids.tolist())
