"""The sparsity job: a scores table -> statistics of where RL changed the policy."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from dlogp_ray.config.job import ONE_OR_MORE_TEXTS, JobConfig, RunOn, Uri, check_name


class SparsityConfig(JobConfig):
    """Which run, and how its tokens are split."""

    run: Uri
    """Folder or URL of a score run: ``<output>/<run_id>``."""
    name: str = "all"
    """Of this analysis, and of its folder: ``<run>/sparsity/<name>``."""
    by: Annotated[tuple[str, ...], ONE_OR_MORE_TEXTS] = ()
    """Columns that figures are split by, besides policy and generator: ``correct``, ``source``."""
    responses: Annotated[int, Field(ge=0)] = 200
    """That the report shows, of all groups together."""
    partial: bool = False
    """Analyse a run that is not sealed, as far as it is."""
    run_on: RunOn = "auto"
    """``here``: in this process. ``ray``: in processes of a Ray, which is started on this machine
    where ``RAY_ADDRESS`` names none. ``auto``: here, where that takes less time than its start."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_name(self.name)
        if len(set(self.by)) < len(self.by):
            raise ValueError(f"by: a column is there twice: {', '.join(self.by)}")
        return self
