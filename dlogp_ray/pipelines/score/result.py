"""How a score job ended."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from dlogp_ray.amounts import amount
from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.pipelines.run.clock import Clock
from dlogp_ray.pipelines.run.make_run import Made
from dlogp_ray.pipelines.run.result import RunResult, common_result, result_table
from dlogp_ray.tables.noise import NoiseFloor


@dataclass(frozen=True)
class ScoreResult(RunResult):
    """The end of a score job; rows are samples x compared policies.

    Attributes:
        noise: The floor, measured when the run began; None where it was not.
        units_uncompiled: Units of this call that ``torch.compile`` had given up in: in part they
            ran as if nothing was compiled, slower and rounded otherwise.
    """

    noise: NoiseFloor | None = None
    units_uncompiled: int = 0

    @property
    def units_scored(self) -> int:
        """Units that this call has scored."""
        return self.units_created

    def as_json(self) -> dict[str, Any]:
        """All fields, for the last line of output."""
        fields = super().as_json() | {"rejected": self.rejected, "units_scored": self.units_scored}
        del fields["units_created"]
        return fields | {"noise": self.noise and self.noise.model_dump()}


def summarise_run(made: Made, clock: Clock, max_rejected: int) -> ScoreResult:
    """What is in the run, and the exit code that follows from it.

    Args:
        made: The run after the job.
        clock: Of this call.
        max_rejected: As the config says.
    """
    return ScoreResult(
        **common_result(made, clock, max_rejected),
        noise=made.run.noise,
        units_uncompiled=made.outcome.uncompiled,
    )


def print_score(result: ScoreResult, console: Console) -> None:
    """A small table."""
    measured = []
    if result.noise:
        measured.append(result.noise.as_row())
    if result.units_uncompiled:
        gave_up = "torch.compile gave up there (the log's `uncompiled` says on what)"
        units = amount(result.units_uncompiled, "unit")
        measured.append(("uncompiled", f"{units}, in part: {gave_up}"))
    print_whole(result_table(result, measured), console)
    if result.rejected:
        console.print(f"which rows, and why: dlogp show {result.run}", soft_wrap=True)
