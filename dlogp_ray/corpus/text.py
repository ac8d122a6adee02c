"""Text rows: prompts, messages and responses become token ids.

Prompt and response are tokenised apart, as they were when the response was generated token by
token; the ids may still not be the ones that were sampled, so such rows are marked ``from_text``.
"""

from typing import Any, Literal

from dlogp_ray.errors import Refused, RowRejected


class TextTokenizer:
    """Turns text columns into ids with one policy's tokenizer and chat template.

    Args:
        tokenizer: A Hugging Face tokenizer.
        prompt_format: "raw": a ``prompt`` is tokenised as it is, with the special tokens that the
            tokenizer itself puts in front; "chat": it is the content of one user message.
        append_eos: Whether the end-of-sequence token follows each response and is scored.

    Raises:
        Refused: The tokenizer lacks what the arguments need.
    """

    def __init__(
        self, tokenizer: Any, *, prompt_format: Literal["raw", "chat"], append_eos: bool
    ) -> None:
        """Check that the tokenizer has what is asked of it."""
        if prompt_format == "chat" and not tokenizer.chat_template:
            raise Refused("prompt_format chat: the tokenizer has no chat template; use raw")
        if append_eos and tokenizer.eos_token_id is None:
            raise Refused("append_eos: the tokenizer has no end-of-sequence token")
        self._tokenizer = tokenizer
        self._chat = prompt_format == "chat"
        self._eos = [tokenizer.eos_token_id] if append_eos else []

    def prompt(self, text: str) -> list[int]:
        """Ids of a text prompt.

        Raises:
            RowRejected: As ``messages``, or the tokenizer has no ids for it.
        """
        if self._chat:
            return self.messages([{"role": "user", "content": text}])
        return self._ids(text, special=True)

    def messages(self, messages: list[dict[str, Any]]) -> list[int]:
        """Ids of a conversation, up to where the assistant's answer begins.

        Raises:
            RowRejected: There is no chat template, or it refuses the messages, or the tokenizer
                has no ids for them.
        """
        if not self._tokenizer.chat_template:
            raise RowRejected("chat_template", "messages came, and the tokenizer has no template")
        try:
            text = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:
            raise RowRejected("chat_template", f"the chat template refuses it: {error}") from error
        return self._ids(text, special=False)

    def response(self, text: str) -> list[int]:
        """Ids of a text response.

        Raises:
            RowRejected: The tokenizer has no ids for it.
        """
        return self._ids(text, special=False) + self._eos

    def _ids(self, text: str, *, special: bool) -> list[int]:
        try:
            # Its warning about long texts comes before they are checked here.
            found = self._tokenizer(text, add_special_tokens=special, verbose=False)
        except Exception as error:  # such as a character outside a vocabulary without unknowns
            raise RowRejected("tokenizer", f"the tokenizer refuses it: {error}") from error
        return list(found["input_ids"])
