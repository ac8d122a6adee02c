"""The config of an intervene job."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dlogp_ray.config.job import ONE_OR_MORE_TEXTS, Uri, as_list
from dlogp_ray.config.model import ConfigModel
from dlogp_ray.config.run import BASE, RunConfig

PROBLEM_COLUMNS = ("problem_id", "prompt_ids", "prompt", "messages", "answer")

Rate = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""As the table's int64 takes it."""


def _as_numbers(value: object) -> object:
    values = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, bool) for one in values):  # pydantic would take true for 1
        raise ValueError("expected numbers, got a truth value")
    return values


_NUMBERS = BeforeValidator(_as_numbers, json_schema_input_type=float | tuple[float, ...])


class RuleConfig(ConfigModel):
    """A rule, at the thresholds or the rates at which it is to fire."""

    rule: Literal[
        "delta_logp",
        "kl",
        "kl_base_rl",
        "js",
        "entropy_base",
        "entropy_rl",
        "random",
        "always",
        "never",
    ]
    """What is looked at; ``always`` and ``never`` take neither thresholds nor rates."""
    thresholds: Annotated[tuple[float, ...], _NUMBERS] = ()
    """Fire at and beyond each of these."""
    rates: Annotated[tuple[Rate, ...], _NUMBERS] = ()
    """Fire at each of these shares of the tokens of the drafting policy's own text: thresholds are
    calibrated on such text before the run. In the run itself, where the other policy writes too, a
    rule fires at another rate, usually a lower one."""
    primary: Literal["base", "rl"] = "base"
    """The policy that drafts."""
    gammas: Annotated[tuple[float, ...], _NUMBERS] = ()
    """Draw from the extrapolation beyond the RL policy with each of these γ (default: from the
    policy that does not draft)."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.rule in ("always", "never"):
            if self.thresholds or self.rates:
                raise ValueError(f"rule {self.rule} takes neither thresholds nor rates")
        elif not self.thresholds and not self.rates:
            raise ValueError(f"rule {self.rule} needs thresholds, or rates to calibrate them for")
        return self


class InterveneConfig(RunConfig):
    """An intervene job: problems and two policies in, answers of both together out."""

    problems: Annotated[
        tuple[Uri, ...],
        BeforeValidator(as_list, json_schema_input_type=Uri | tuple[Uri, ...]),
        Field(min_length=1, examples=["problems: problems.jsonl"]),
    ]
    """JSONL or Parquet files, folders or globs, a problem a row."""
    rules: Annotated[
        tuple[RuleConfig, ...],
        BeforeValidator(as_list, json_schema_input_type=RuleConfig | tuple[RuleConfig, ...]),
        Field(min_length=1, examples=["rules: [{rule: delta_logp, rates: [0.05, 0.1]}]"]),
    ]
    """What is tried on every problem, beside each policy by itself."""
    columns: dict[str, str] = Field(
        default_factory=dict, examples=["columns: {problem_id: id, answer: target}"]
    )
    """Standard column name -> the name that it has in this file."""
    verifier: str = "exact_match"
    """Who says whether an answer is right: ``exact_match`` or ``math_verify`` (both compare with
    the column ``answer``), or a function of your own, (problem, response) -> bool, as
    ``package.module:function`` or ``path/file.py:function``, which workers find there too."""

    samples: Annotated[int, Field(ge=1)] = 1
    """Answers to each problem, for each seed and each intervention."""
    seeds: Annotated[tuple[Seed, ...], _NUMBERS, Field(min_length=1)] = (0,)
    """Of the random streams; all interventions share the streams of each."""
    calibration_problems: Annotated[int, Field(ge=1)] = 500
    """So many of the problems are answered beforehand, from other streams, for the thresholds."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Of what is drawn from; rules look at temperature 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest ids that have so much probability."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from the k likeliest ids; 0 for all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Draw from ids that have so much of the likeliest one's probability; 0 for all."""
    max_tokens: Annotated[int, Field(ge=1)] = 1_024
    """Of an answer."""
    stop_strings: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], ONE_OR_MORE_TEXTS] = ()
    """An answer ends with the first of these, or with an end-of-sequence token."""

    rows: Annotated[int, Field(ge=1)] | None = None
    """Texts that an actor decodes at a time (default: 128 on a CPU, 256 on a GPU)."""
    block: Annotated[int, Field(ge=1, le=16)] | None = None
    """Tokens that are drafted before they are checked (default: what pays most, as measured)."""
    unit_problems: Annotated[int, Field(ge=1)] = 100
    """Problems of one work unit, with all of their answers."""

    @model_validator(mode="after")
    def _a_pair(self) -> Self:
        if len(self.policies) != 2:
            raise ValueError(
                f"policies {', '.join(self.policies)}: expected two, {BASE!r} and the RL policy"
            )
        unknown = sorted(set(self.columns) - set(PROBLEM_COLUMNS))
        if unknown:
            raise ValueError(
                f"columns: {', '.join(unknown)} is not a standard column; the left side of each "
                f"entry is one of {', '.join(PROBLEM_COLUMNS)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {', '.join(map(str, self.seeds))}: one is there twice")
        return self

    @property
    def rl(self) -> str:
        """The name of the policy that is not the base."""
        return self.compared[0]
