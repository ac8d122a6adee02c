"""The config of a reweight job: a scores table -> a weights table."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from dlogp_ray.config.job import JobConfig, Uri, as_list, check_name
from dlogp_ray.config.schemes import Scheme


class ReweightConfig(JobConfig):
    """Which run, by which schemes, and which of its policies wrote the texts."""

    run: Uri
    """Folder or URL of a score run: ``<output>/<run_id>``."""
    schemes: Annotated[tuple[Scheme, ...], BeforeValidator(as_list), Field(min_length=1)]
    """Their weights are multiplied."""
    name: str = ""
    """Of the table, and of its folder ``<run>/weights/<name>`` (default: the schemes' names)."""
    policy: str | None = None
    """π_old: the scored policy that generated the texts (default: what ``generator`` says, where
    all texts have one)."""
    rl: str | None = None
    """Of several policies that were compared with the base: the one whose Δlog p is meant, or that
    is the current one."""
    mean_one: bool = False
    """Divide the weights by their mean over each text."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name:
            check_name(self.name)
        names = [one.scheme for one in self.schemes]
        if len(set(names)) < len(names):
            raise ValueError(f"schemes: one is there twice: {', '.join(names)}")
        return self

    @property
    def table(self) -> str:
        """The table's name."""
        return self.name or "-".join(one.scheme for one in self.schemes)
