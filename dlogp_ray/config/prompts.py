"""How prompts of text become tokens."""

from typing import Any, Literal

from pydantic import Field

from dlogp_ray.config.model import ConfigModel

PromptFormat = Literal["raw", "chat", "rendered"]


class Prompts(ConfigModel):
    """What jobs say of prompts of text, and entries of a corpus may say otherwise."""

    prompt_format: PromptFormat = "raw"
    """How a text ``prompt`` becomes tokens: as it is, as one user message of the chat template, or
    as a text that is ``rendered``: its special tokens stand in it, and none is added.
    ``messages`` always go through the chat template."""
    template: dict[str, Any] = Field(
        default_factory=dict, examples=["template: {enable_thinking: false}"]
    )
    """Arguments of the chat template."""
