"""The config of a benchmark."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dlogp_ray.config.job import JobConfig, Uri


class BenchConfig(JobConfig):
    """A benchmark: two checkpoints, made-up texts, and what to run over them side by side."""

    base: Uri
    """Folder or hub id of the base policy."""
    rl: Uri
    """Folder or hub id of the other policy."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """As in a score job."""
    texts: Annotated[int, Field(ge=1)] = 32
    """How many texts of random tokens."""
    prompt_tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens of each prompt."""
    min_response_tokens: Annotated[int, Field(ge=1)] = 32
    """The shortest response; lengths are uniform up to the longest."""
    max_response_tokens: Annotated[int, Field(ge=1)] = 512
    """The longest response."""
    groups: Annotated[int, Field(ge=0)] = 2
    """Groups of 8 responses of 128 tokens on a prompt of 512, for the gain of shared prompts."""
    token_budget: Annotated[int, Field(ge=1)] | None = None
    """As in a score job."""
    compile: Literal["on", "off"] = "on"
    """Whether layers and statistics are compiled."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes that share the texts, as actors do; the naive loops run in one."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads of each; the naive loops have them all."""
    repeats: Annotated[int, Field(ge=1)] = 3
    """Rounds; each runs everything once, in turn."""
    vllm_python: str | None = None
    """A Python that has vLLM, in an environment of its own, to be measured beside."""
    lm_eval_python: str | None = None
    """The same for lm-eval."""
    seed: int = 0
    """Of the texts."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_response_tokens > self.max_response_tokens:
            raise ValueError(
                f"min_response_tokens {self.min_response_tokens} is more than "
                f"max_response_tokens {self.max_response_tokens}"
            )
        if self.texts < self.processes:
            raise ValueError(
                f"texts {self.texts} is less than processes {self.processes}: each needs one"
            )
        return self
