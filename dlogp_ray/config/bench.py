"""The config of a benchmark."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dlogp_ray.config.job import JobConfig, OnOff, Uri, on_or_off

ARMS = {
    "pair": "both policies, all statistics",
    "pair_sampled": "both policies, log-probabilities of the sampled tokens only",
    "bodies": "both bodies, no head",
    "bodies_and_bare_heads": "both bodies and the heads' bare products",
    "naive_logp_twice": "plain forward and log-softmax, both policies: log p only",
    "naive_statistics": "plain forward of both policies, all statistics",
    "vllm_twice": "vLLM prompt_logprobs, two passes: log p and rank only",
    "lm_eval_twice": "lm-eval log-likelihoods, two passes: summed log p only",
    "heads": "heads and statistics alone",
    "groups_shared": "groups of 8 x 128 tokens on prompts of 512",
    "groups_unshared": "the same without sharing prompts",
    "vllm_groups_twice": "vLLM on the groups, two passes: log p and rank only",
}
"""What can be measured, and what it is."""


def _as_names(value: object) -> object:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


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
    compile: Annotated[
        Literal["on", "off"], BeforeValidator(on_or_off, json_schema_input_type=OnOff)
    ] = "on"
    """Whether layers and statistics are compiled."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes that share the texts, as actors do; the naive loops run in one."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads of each; the naive loops have them all."""
    repeats: Annotated[int, Field(ge=1)] = 3
    """Rounds; each runs everything once, in turn."""
    arms: Annotated[tuple[str, ...] | None, BeforeValidator(_as_names)] = None
    """What to measure, by name (default: all that there is)."""
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
        unknown = [name for name in self.arms or () if name not in ARMS]
        if unknown:
            raise ValueError(f"arms: unknown {', '.join(unknown)}; there are {', '.join(ARMS)}")
        needs = {"vllm": self.vllm_python, "lm_eval": self.lm_eval_python, "groups": self.groups}
        for name in self.arms or ():
            for word, given in needs.items():
                if word in name and not given:
                    field = word if word == "groups" else f"{word}_python"
                    raise ValueError(f"arms: {name} needs {field}, which is {given!r}")
        if self.texts < self.processes:
            raise ValueError(
                f"texts {self.texts} is less than processes {self.processes}: each needs one"
            )
        return self

    @property
    def chosen(self) -> tuple[str, ...]:
        """The arms that are measured, in the order of ``ARMS``."""
        if self.arms is not None:
            return tuple(name for name in ARMS if name in self.arms)
        there = {"vllm": self.vllm_python, "lm_eval": self.lm_eval_python, "groups": self.groups}
        lacking = [word for word, given in there.items() if not given]
        return tuple(name for name in ARMS if not any(word in name for word in lacking))
