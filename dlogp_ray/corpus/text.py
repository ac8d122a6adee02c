"""Text rows: prompts, messages and responses become token ids.

Prompt and response are tokenised apart, as they were when the response was generated token by
token; the ids may still not be the ones that were sampled, so such rows are marked ``from_text``.

A special token is put nowhere that it stands already, and none ends a prompt but one that its text
ends with: the response would be scored after it. Inside a text they are what the text says.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import Any, Literal, NamedTuple

from dlogp_ray.amounts import amount
from dlogp_ray.errors import Refused, RowRejected
from dlogp_ray.status import Status
from dlogp_ray.tables.special_tokens import BOS_THERE, END_LEFT_OFF, EOS_THERE

_TRIED = 1_000
"""Tokens of a vocabulary among which one is sought that its own text gives."""


_CHARACTERS_PER_TOKEN = 16
"""More than texts have; less than what tokens for long runs of one character stand for."""


class TextIds(NamedTuple):
    """What became of a text.

    Attributes:
        ids: Its token ids.
        special: Which of ``tables.special_tokens`` were not added or left off.
    """

    ids: list[int]
    special: tuple[str, ...] = ()


class TextTokenizer:
    """Turns text columns into ids with one policy's tokenizer and chat template.

    Args:
        tokenizer: A Hugging Face tokenizer.
        prompt_format: "raw": a ``prompt`` is tokenised as it is, behind the special tokens that the
            tokenizer itself puts in front; "chat": it is the content of one user message;
            "rendered": its special tokens stand in it, and none is put in front.
        template: Arguments of the chat template.
        append_eos: Whether the end-of-sequence token follows each response and is scored.
        ends: Ids that end a response, beside the tokenizer's own: one that ends with such gets no
            second end.
        max_tokens: What a row may have, None for no limit: a text of many more is not tokenised.

    Attributes:
        ends: All of them.

    Raises:
        Refused: The tokenizer lacks what the arguments need.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt_format: Literal["raw", "chat", "rendered"],
        append_eos: bool,
        template: Mapping[str, Any] | None = None,
        ends: Collection[int] = (),
        max_tokens: int | None = None,
    ) -> None:
        """Check that the tokenizer has what is asked of it."""
        if prompt_format == "chat" and not tokenizer.chat_template:
            raise Refused("prompt_format chat: the tokenizer has no chat template; use raw")
        if append_eos and tokenizer.eos_token_id is None:
            raise Refused("append_eos: the tokenizer has no end-of-sequence token")
        self._tokenizer = tokenizer
        self._format = prompt_format
        self._template = dict(template or {})
        self._append_eos = append_eos
        self._max_tokens = max_tokens
        self.ends = frozenset({tokenizer.eos_token_id, *ends} - {None})

    def prompt(self, text: str) -> TextIds:
        """Ids of a text prompt.

        Raises:
            RowRejected: As ``messages``, or the tokenizer has no ids for it.
        """
        if self._format == "chat":
            return self.messages([{"role": "user", "content": text}])
        if self._format == "rendered":
            return TextIds(self._begun_once(text))
        before, after = self._added
        ids = self._begun_once(text)
        there = next((n for n in range(len(before), 0, -1) if before[-n:] == ids[:n]), 0)
        special = [BOS_THERE] * bool(there) + [END_LEFT_OFF] * bool(after)
        return TextIds(before[: len(before) - there] + ids, tuple(special))

    def messages(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> TextIds:
        """Ids of a conversation, up to where the assistant's answer begins.

        Args:
            messages: Of role and content.
            tools: That the assistant may call, as the template takes them.

        Raises:
            RowRejected: There is no chat template, or it refuses the messages, or the tokenizer
                has no ids for them, or they begin twice.
        """
        if not self._tokenizer.chat_template:
            raise RowRejected(
                Status.CHAT_TEMPLATE, "messages came, and the tokenizer has no template"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                **({"add_generation_prompt": True} | self._template),
                tokenize=False,
            )
        except Exception as error:
            raise RowRejected(
                Status.CHAT_TEMPLATE, f"the chat template refuses it: {error}"
            ) from error
        return TextIds(self._begun_once(text))

    def response(self, text: str) -> TextIds:
        """Ids of a text response.

        Raises:
            RowRejected: The tokenizer has no ids for it.
        """
        ids = self._ids(text)
        if not self._append_eos:
            return TextIds(ids)
        if ids and ids[-1] in self.ends:
            return TextIds(ids, (EOS_THERE,))
        return TextIds([*ids, self._tokenizer.eos_token_id])

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before a text, and those behind it."""
        special = set(self._tokenizer.all_special_ids)
        ordinary = (token for token in range(len(self._tokenizer)) if token not in special)
        for token in islice(ordinary, _TRIED):
            # A vocabulary may have no ids for the text of a token of its own, or other ones.
            with suppress(RowRejected, ValueError):
                text = self._tokenizer.decode([token])
                ids, whole = self._ids(text), self._ids(text, special=True)
                if ids and not special & set(ids):
                    start = whole.index(ids[0])
                    return whole[:start], whole[start + len(ids) :]
        raise RowRejected(
            Status.TOKENIZER, "which special tokens the tokenizer adds can't be found out"
        )

    def _begun_once(self, text: str) -> list[int]:
        """Ids of what begins a sequence, without special tokens but those in the text."""
        ids = self._ids(text)
        begin = self._added[0] or [self._tokenizer.bos_token_id]
        if ids[: 2 * len(begin)] == 2 * begin:
            name = "".join(self._tokenizer.convert_ids_to_tokens(begin))
            raise RowRejected(
                Status.TWO_BOS,
                f"the text begins with {name} twice; leave it there once, or not at all",
            )
        return ids

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        self._check_length(text)
        return self._encoded(text, special=special)

    def _check_length(self, text: str) -> None:
        """Reject what is too long by far by its beginning: a token's ids take 1.5 KB on the way.

        Raises:
            RowRejected: The text has more than twice the tokens that a row may have.
        """
        if self._max_tokens is None:
            return
        size = _CHARACTERS_PER_TOKEN * self._max_tokens
        while len(text) > size:
            count = len(self._encoded(text[:size]))
            # Twice: how a text goes on can change the tokens at the end of its beginning.
            if count > 2 * self._max_tokens:
                raise RowRejected(
                    Status.TOO_LONG,
                    f"the first {size:,} of {len(text):,} characters have "
                    f"{amount(count, 'token')}; the policies take {self._max_tokens:,}",
                )
            size *= 2

    def _encoded(self, text: str, *, special: bool = False) -> list[int]:
        try:
            # Its warning about long texts comes before they are checked here.
            encoding = self._tokenizer(text, add_special_tokens=special, verbose=False)
        except Exception as error:  # such as a character outside a vocabulary without unknowns
            raise RowRejected(Status.TOKENIZER, f"the tokenizer refuses it: {error}") from error
        return list(encoding["input_ids"])
