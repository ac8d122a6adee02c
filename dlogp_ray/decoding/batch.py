"""The texts that are being written: whose answers each is, its tokens and how far it is.

One text stands for every intervention that has come to it: as long as two of them draw the same
tokens for the same place of the same answer they share a row, with what both policies compute for
it. Where they part, one goes on in the row and the other waits for a row of its own.

Shapes: n rows in use (always the first n), m interventions, k drafts of a block, c capacity of a
text, a capacity of an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from dlogp_ray.amounts import amount
from dlogp_ray.decoding.block_size import LARGEST
from dlogp_ray.decoding.rules import Intervention
from dlogp_ray.decoding.streams import Purpose, uniforms


@dataclass(frozen=True)
class Prompt:
    """Answers that are wanted: one for each intervention, from the same random streams.

    Attributes:
        problem: The problem's name, which keys the random streams.
        ids: The prompt.
        interventions: How the two policies decode it; each once.
        sample: Number of the answer to this problem.
        seed: Of the streams.
    """

    problem: str
    ids: Sequence[int]
    interventions: tuple[Intervention, ...]
    sample: int = 0
    seed: int = 0

    @cached_property
    def key(self) -> bytes:
        """Equal for equal prompts."""
        return np.asarray(self.ids, dtype=np.int64).tobytes()

    @property
    def stream(self) -> tuple[str, int, int]:
        """What names its random streams."""
        return self.problem, self.sample, self.seed


def why_not(ids: Sequence[int], context: int | None, width: int) -> str | None:
    """What keeps a prompt from being answered, None where nothing does.

    Args:
        ids: The prompt.
        context: Tokens that the policies can see; None for any number.
        width: Ids that the policies have.
    """
    if not len(ids):
        return "expected a prompt of at least one token, got none"
    if context is not None and len(ids) >= context:
        return (
            f"the prompt has {amount(len(ids), 'token')}, which leaves no room for an answer in "
            f"the policies' context of {context:,}"
        )
    if min(ids) < 0 or max(ids) >= width:
        return f"expected ids from 0 to {width - 1}, got {min(ids)} to {max(ids)}"
    return None


@dataclass(frozen=True)
class Answer:
    """What came of a prompt; the arrays are aligned.

    Attributes:
        prompt: Which.
        intervention: One of the prompt's.
        ids: [length] int32, with the stop token where there is one.
        fired: [length] bool: the rule fired.
        changed: [length] bool: and the token that was drawn again is another one.
        finish: Ended by itself, or at the most tokens.
        close: Draws so near to another token's share that other roundings may give that one.
    """

    prompt: Prompt
    intervention: Intervention
    ids: np.ndarray
    fired: np.ndarray
    changed: np.ndarray
    finish: Literal["stop", "length"]
    close: int


@dataclass(frozen=True)
class Text:
    """A text that has no row: a prompt, or a branch of an answer.

    Attributes:
        prompt: Whose answer it is.
        members: [w] the interventions that have come to it, as the batch counts them.
        ids: [t] the answer so far.
        fired: [w, t] where each member's rule fired.
        changed: [t] where the token is not the draft.
        close: [w] close draws of each member.
        stopped: Whether the answer has ended by itself.
    """

    prompt: Prompt
    members: Int[np.ndarray, " w"]
    ids: Int[np.ndarray, " t"]
    fired: Bool[np.ndarray, "w t"]
    changed: Bool[np.ndarray, " t"]
    close: Int[np.ndarray, " w"]
    stopped: bool = False


@dataclass
class Block:
    """The drafts that follow each row's text, and what the rules made of them.

    Attributes:
        drafts: [n, k] ids.
        close: [n, k] drafts that were close draws.
        ends: [n] how many of them the text can grow by, whatever the rules say.
        fired: [n, m, k] where a member's rule fires; counts up to its first change.
        redrawn_close: [n, m, k] members' tokens that were drawn again and were close.
        place: [n, m] the first place where what was drawn again is another token; k for none.
        token: [n, m] that token.
    """

    drafts: Int[np.ndarray, "n k"]
    close: Bool[np.ndarray, "n k"]
    ends: Int[np.ndarray, " n"]
    fired: Bool[np.ndarray, "n m k"]
    redrawn_close: Bool[np.ndarray, "n m k"]
    place: Int[np.ndarray, "n m"]
    token: Int[np.ndarray, "n m"]
    ahead: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """The places of a block."""
        self.ahead = np.arange(self.size)

    @classmethod
    def empty(cls, rows: int, members: int, size: int) -> "Block":
        """Nothing is drafted, nothing fires."""
        return cls(
            drafts=np.zeros((rows, size), dtype=np.int64),
            close=np.zeros((rows, size), dtype=bool),
            ends=np.full(rows, size),
            fired=np.zeros((rows, members, size), dtype=bool),
            redrawn_close=np.zeros((rows, members, size), dtype=bool),
            place=np.full((rows, members), size),
            token=np.zeros((rows, members), dtype=np.int64),
        )

    @property
    def size(self) -> int:
        """k."""
        return len(self.drafts[0])


class Batch:
    """Rows of texts.

    Args:
        rows: The most at a time.
        max_tokens: Of an answer.
        context: Of a text.

    Attributes:
        tokens: [rows, c] ids of every text, from the prompt on.
        lengths: [rows] tokens of each text.
        prompt_lengths: [rows] tokens of each prompt.
        prompts: Of each row in use.
        interventions: All that there are in the batch; ``members`` counts them.
        members: [rows, m] whose answer each text is.
    """

    def __init__(self, rows: int, max_tokens: int, context: int) -> None:
        """No row is in use."""
        self._max_tokens, self._context = max_tokens, context
        self.prompts: list[Prompt] = []
        self.interventions: list[Intervention] = []
        self._number: dict[Intervention, int] = {}
        capacity = max_tokens + LARGEST
        self.members = np.zeros((rows, 0), dtype=bool)
        self.prompt_lengths = np.zeros(rows, dtype=np.int64)
        self.lengths = np.zeros(rows, dtype=np.int64)
        self._limits = np.zeros(rows, dtype=np.int64)
        self._stopped = np.zeros(rows, dtype=bool)
        self.tokens = np.zeros((rows, 0), dtype=np.int64)
        self._fired = np.zeros((rows, 0, capacity), dtype=bool)
        self._close = np.zeros((rows, 0), dtype=np.int64)
        self._changed = np.zeros((rows, capacity), dtype=bool)
        self._numbers = np.zeros((rows, len(Purpose), capacity))

    def __len__(self) -> int:
        """n."""
        return len(self.prompts)

    @property
    def rows(self) -> Int[np.ndarray, " n"]:
        """[n] the rows in use."""
        return np.arange(len(self))

    @property
    def answered(self) -> Int[np.ndarray, " n"]:
        """[n] tokens of each answer so far."""
        return self.lengths[: len(self)] - self.prompt_lengths[: len(self)]

    @property
    def left(self) -> Int[np.ndarray, " n"]:
        """[n] tokens that each answer may still have."""
        return self._limits[: len(self)] - self.lengths[: len(self)]

    @property
    def replaced(self) -> Int[np.ndarray, " n"]:
        """[n] how many tokens of each answer so far are not the draft."""
        so_far = np.arange(self._changed.shape[1]) < self.answered[:, None]  # [n, capacity]
        counts: np.ndarray = (self._changed[: len(self)] & so_far).sum(1)
        return counts

    @property
    def finished(self) -> Int[np.ndarray, " ended"]:
        """The rows whose answers have ended."""
        return np.flatnonzero(self._stopped[: len(self)] | (self.left == 0))

    def most_drafts(self) -> int:
        """How large a block can be: nothing is fed beyond the context."""
        longest = int(self.lengths[: len(self)].max())
        return min(int(self.left.max()), self._context - longest + 1)

    def begin(self, prompt: Prompt) -> Text:
        """The text of a prompt that no intervention has looked at."""
        for intervention in prompt.interventions:
            if intervention not in self._number:
                self._number[intervention] = len(self.interventions)
                self.interventions.append(intervention)
        missing = len(self.interventions) - self.members.shape[1]
        if missing > 0:
            self.members = np.pad(self.members, ((0, 0), (0, missing)))
            self._close = np.pad(self._close, ((0, 0), (0, missing)))
            self._fired = np.pad(self._fired, ((0, 0), (0, missing), (0, 0)))
        members = np.array([self._number[one] for one in prompt.interventions])
        return Text(
            prompt,
            members,
            ids=np.zeros(0, dtype=np.int64),
            fired=np.zeros((len(members), 0), dtype=bool),
            changed=np.zeros(0, dtype=bool),
            close=np.zeros(len(members), dtype=np.int64),
        )

    def place(self, row: int, text: Text) -> None:
        """Give a text a row that is not in use any more, or the next one."""
        prompt = text.prompt
        if row == len(self):
            self.prompts.append(prompt)
        else:
            self.prompts[row] = prompt
        start, answered = len(prompt.ids), len(text.ids)
        self.prompt_lengths[row], self.lengths[row] = start, start + answered
        self._limits[row] = self.limit(prompt)
        self._stopped[row] = text.stopped
        self.members[row] = False
        self.members[row, text.members] = True
        self._close[row, text.members] = text.close
        self._fired[row, text.members, :answered] = text.fired
        self._changed[row, :answered] = text.changed
        missing = start + self._max_tokens + LARGEST - self.tokens.shape[1]
        if missing > 0:
            self.tokens = np.pad(self.tokens, ((0, 0), (0, missing)))
        self.tokens[row, :start] = prompt.ids
        self.tokens[row, start : start + answered] = text.ids
        self._numbers[row] = uniforms(
            prompt.seed, prompt.problem, prompt.sample, self._numbers.shape[2]
        )

    def move(self, target: int) -> int | None:
        """Let the last row take the place of one that is not in use any more.

        Returns:
            Where it was, None where it is that row itself.
        """
        source = len(self) - 1
        self.prompts[target] = self.prompts[-1]
        self.prompts.pop()
        if source == target:
            return None
        arrays = (
            self.members,
            self.prompt_lengths,
            self.lengths,
            self._limits,
            self._stopped,
            self.tokens,
            self._fired,
            self._close,
            self._changed,
            self._numbers,
        )
        for array in arrays:
            array[target] = array[source]
        return source

    def most_alike(self, row: int, others: Sequence[int]) -> tuple[int, int]:
        """Which of some other rows begins most as this one does, and how many tokens long."""
        length = int(self.lengths[row])
        equal = self.tokens[others, :length] == self.tokens[row, :length]  # [others, length]
        shared = np.where(equal.all(1), length, equal.argmin(1))
        shared = np.minimum(shared, self.lengths[others])
        best = int(shared.argmax())
        return others[best], int(shared[best])

    def numbers(self, purpose: Purpose, rows: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        """The random numbers of the places ``ahead`` of the end of some rows' answers."""
        numbers: np.ndarray = self._numbers[rows, purpose, self.answered[rows] + ahead]
        return numbers

    def draft(self, block: Block) -> None:
        """Put a block's drafts behind the texts, which do not become longer."""
        columns = self.lengths[: len(self), None] + block.ahead  # [n, k]
        self.tokens[self.rows[:, None], columns] = block.drafts

    def answer_ids(self, row: int) -> np.ndarray:
        """The answer so far."""
        return self.tokens[row, self.prompt_lengths[row] : self.lengths[row]]

    def keep(self, block: Block) -> tuple[np.ndarray, list[Text]]:
        """Let the texts grow by what is kept of a block.

        Members for whom nothing changed keep the row; where there are none, those with the longest
        text do. The others' texts are branches, which wait for rows.

        Returns:
            [n] how many tokens each row's text has grown by, and the branches.
        """
        rows = self.rows
        self.draft(block)
        answered = self.answered
        grown, final = block.ends.copy(), block.drafts[rows, block.ends - 1]  # [n] each
        branches: list[Text] = []
        members = self.members[: len(self)]
        parted = members & (block.place < block.ends[:, None])  # [n, m]
        for row in np.flatnonzero(parted.any(1)).tolist():
            staying = np.flatnonzero(members[row] & ~parted[row])
            groups: dict[tuple[int, int], list[int]] = {}
            for member in np.flatnonzero(parted[row]).tolist():
                where = int(block.place[row, member]), int(block.token[row, member])
                groups.setdefault(where, []).append(member)
            if not len(staying):
                place, token = max(groups)
                staying = np.array(groups.pop((place, token)))
                grown[row], final[row] = place + 1, token
            for (place, token), some in groups.items():
                branches.append(self._branch(row, np.array(some), block, place, token))
            self.members[row] = False
            self.members[row, staying] = True
        columns = answered[:, None] + block.ahead  # [n, k]
        self._fired[rows[:, None], :, columns] = block.fired.transpose(0, 2, 1)
        kept = block.ahead < grown[:, None]  # [n, k]
        close = (block.close[:, None] | block.redrawn_close) & kept[:, None]  # [n, m, k]
        self._close[: len(self)] += close.sum(2)
        last = answered + grown - 1  # [n]
        self._changed[rows[:, None], columns] = False
        self._changed[rows, last] = final != block.drafts[rows, grown - 1]
        self.lengths[: len(self)] += grown
        self.tokens[rows, self.lengths[: len(self)] - 1] = final
        return grown, branches

    def _branch(self, row: int, members: np.ndarray, block: Block, place: int, token: int) -> Text:
        """The text of members who part from a row with another token at a place of the block."""
        answered, new = int(self.answered[row]), slice(0, place + 1)
        close = (block.close[row, None, new] | block.redrawn_close[row, members, new]).sum(1)
        return Text(
            self.prompts[row],
            members,
            ids=np.concatenate([self.answer_ids(row), block.drafts[row, :place], [token]]),
            fired=np.concatenate(
                [self._fired[row, members, :answered], block.fired[row, members, new]], axis=1
            ),
            changed=np.concatenate([self._changed[row, :answered], block.ahead[new] == place]),
            close=self._close[row, members] + close,
        )

    def stop(self, rows: np.ndarray) -> None:
        """These rows' answers have ended by themselves."""
        self._stopped[rows] = True

    def text(self, row: int) -> Text:
        """What a row holds."""
        members, length = np.flatnonzero(self.members[row]), int(self.answered[row])
        return Text(
            self.prompts[row],
            members,
            ids=self.answer_ids(row).copy(),
            fired=self._fired[row, members, :length],
            changed=self._changed[row, :length].copy(),
            close=self._close[row, members],
            stopped=bool(self._stopped[row]),
        )

    def limit(self, prompt: Prompt) -> int:
        """The longest text of a prompt."""
        return min(len(prompt.ids) + self._max_tokens, self._context)

    def has_ended(self, text: Text) -> bool:
        """Whether nothing can follow."""
        return text.stopped or len(text.prompt.ids) + len(text.ids) >= self.limit(text.prompt)

    def answers(self, text: Text) -> list[Answer]:
        """An answer for each member of a text that has ended."""
        ids = text.ids.astype(np.int32)
        return [
            Answer(
                prompt=text.prompt,
                intervention=self.interventions[member],
                ids=ids,
                fired=fired,
                changed=text.changed,
                finish="stop" if text.stopped else "length",
                close=int(close),
            )
            for member, fired, close in zip(text.members, text.fired, text.close, strict=True)
        ]
