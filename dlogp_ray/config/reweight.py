"""The config of a reweight job: a scores table -> a weights table."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from dlogp_ray.config.job import JobConfig, RunOn, Uri, as_list, check_name
from dlogp_ray.config.schemes import Scheme


class WeightsConfig(JobConfig):
    """Which weights tokens get, in a table or on the fly."""

    schemes: Annotated[
        tuple[Scheme, ...],
        BeforeValidator(as_list, json_schema_input_type=Scheme | tuple[Scheme, ...]),
        Field(min_length=1),
    ]
    """Their weights are multiplied."""
    mean_one: bool = False
    """Divide the weights by their mean over each text."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [scheme.scheme for scheme in self.schemes]
        if len(set(names)) < len(names):
            raise ValueError(f"schemes: one is there twice: {', '.join(names)}")
        return self


class ReweightConfig(WeightsConfig):
    """Which run, by which schemes, and which of its policies wrote the texts."""

    run: Uri
    """Folder or URL of a score run: ``<output>/<run_id>``."""
    name: str | None = None
    """Of the table, and of its folder ``<run>/weights/<name>`` (default: the schemes' names)."""
    policy: str | None = None
    """π_old: the scored policy that generated the texts (default: what ``generator`` says, where
    all texts have one)."""
    rl: str | None = None
    """Of several policies that were compared with the base: the one whose Δlog p is meant, or that
    is the current one."""
    run_on: RunOn = "auto"
    """``here``: in this process. ``ray``: in processes of a Ray, which is started on this machine
    where ``RAY_ADDRESS`` names none. ``auto``: here, where that takes less time than its start."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.name is not None:
            check_name(self.name)
        return self

    @property
    def table(self) -> str:
        """The table's name."""
        if self.name is not None:
            return self.name
        return "-".join(scheme.scheme for scheme in self.schemes)
