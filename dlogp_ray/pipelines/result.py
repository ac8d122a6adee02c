"""How a score job ended: what is in the run, the exit code, a table for people."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from dlogp_ray.errors import ExitCode
from dlogp_ray.pipelines.cluster import Placement
from dlogp_ray.pipelines.making import Made
from dlogp_ray.pipelines.planning import ScorePlan
from dlogp_ray.pipelines.probe import Probe
from dlogp_ray.tables.noise import NoiseFloor


@dataclass(frozen=True)
class ScorePreview:
    """What a score job would do.

    Attributes:
        plan: Its units.
        probe: Its actors, and what one of them was seen to do.
        noise: What other batches change; None where that is not known.
        units_done: Units whose object is there already.
    """

    plan: ScorePlan
    probe: Probe
    noise: NoiseFloor | None
    units_done: int


@dataclass(frozen=True)
class ScoreResult:
    """The end of a score job.

    Attributes:
        run: Address of the run.
        sealed: Whether the run is complete and closed.
        units: Work units of the run.
        units_done: Those whose object is there.
        units_scored: Those that this call has scored.
        units_failed: Those that could not be done: name -> cause.
        ended: Why Ray ended this call before all units were tried; None if not.
        rows: Rows of the table (samples x compared policies).
        status: Rows by status; all but "ok" are rejected.
        duplicate_sample_ids: Sample ids that stand in more than one unit.
        tokens: Response tokens in the table.
        noise: What other batches change, measured when the run began; None where it was not.
        seconds: Wall-clock time of this call.
        exit_code: See ``errors.ExitCode``.
    """

    run: str
    sealed: bool
    units: int
    units_done: int
    units_scored: int
    units_failed: dict[str, str]
    ended: str | None
    rows: int
    status: dict[str, int]
    duplicate_sample_ids: int
    tokens: int
    noise: NoiseFloor | None
    seconds: float
    exit_code: int

    @property
    def rejected(self) -> int:
        """Rows that could not be scored."""
        return self.rows - self.status.get("ok", 0)

    def as_json(self) -> dict[str, Any]:
        """All fields, for the last line of output."""
        noise = self.noise and self.noise.model_dump()
        return asdict(self) | {"noise": noise, "rejected": self.rejected}


def summarise_run(made: Made, seconds: float, max_rejected: int) -> ScoreResult:
    """What is in the run, and the exit code that follows from it.

    Args:
        made: The run after the job.
        seconds: Wall-clock time of this call.
        max_rejected: As the config says.
    """
    run, outcome = made.run, made.outcome
    totals = run.totals()
    recorded = {name: record["cause"] for name, record in run.failures().items()}
    failures = dict(sorted((recorded | dict(made.failed)).items()))
    code = exit_code(
        failed_units=len(failures),
        ended=outcome.ended is not None,
        rejected=totals["rows"] - totals["status"].get("ok", 0),
        duplicates=totals["duplicate_sample_ids"] + totals["status"].get("duplicate_sample_id", 0),
        max_rejected=max_rejected,
    )
    return ScoreResult(
        run=run.uri,
        sealed=run.sealed,
        units=run.planned,
        units_done=totals["units"],
        units_scored=outcome.created,
        units_failed=failures,
        ended=outcome.ended,
        rows=totals["rows"],
        status=totals["status"],
        duplicate_sample_ids=totals["duplicate_sample_ids"],
        tokens=totals["tokens"],
        noise=run.noise,
        seconds=round(seconds, 1),
        exit_code=int(code),
    )


UNIT_SECONDS = (60, 300)
"""One to five minutes of one actor: little is lost with it, and little is spent on it."""


def print_plan(plan: ScorePreview, console: Console) -> dict[str, Any]:
    """What the job would do, for people; the same as a JSON document is returned."""
    made, placement = plan.plan, plan.probe.placement
    hours = made.tokens / (plan.probe.tokens_per_s * placement.max_actors) / 3600
    per_unit_s = made.tokens / len(made.units) / plan.probe.tokens_per_s
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("run", made.job.run_uri)
    table.add_row("units", f"{len(made.units):,}, {plan.units_done:,} of them done")
    table.add_row("tokens", f"about {made.tokens:,}, prompts and responses")
    table.add_row("bytes", f"{made.size_bytes:,}")
    table.add_row("actors", _where(placement))
    speed = f"{plan.probe.tokens_per_s:,.0f} tokens/s"
    took = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
    table.add_row("expected", f"{took} at {speed} an actor (one measured alone)")
    if plan.noise:
        table.add_row(*plan.noise.as_row())
    if not UNIT_SECONDS[0] <= per_unit_s <= UNIT_SECONDS[1] and len(made.units) > 1:
        better = int(plan.probe.tokens_per_s * UNIT_SECONDS[1] / 2)
        table.add_row(
            "hint", f"a unit takes {per_unit_s:,.0f} s; unit_tokens: {better} takes 150 s"
        )
    console.print(table, highlight=False, soft_wrap=True)
    return {
        "run": made.job.run_uri,
        "units": len(made.units),
        "units_done": plan.units_done,
        "tokens": made.tokens,
        "bytes": made.size_bytes,
        "actors": placement.max_actors,
        "min_actors": placement.min_actors,
        "threads_per_actor": placement.threads,
        "tokens_per_s_per_actor": round(plan.probe.tokens_per_s),
        "hours": hours,
        "noise": plan.noise and plan.noise.model_dump(),
    }


def _where(placement: Placement) -> str:
    threads = f", {placement.threads} threads each" if placement.threads > 1 else ""
    least, most = placement.min_actors, placement.max_actors
    count = f"{most}" if least == most else f"{least} to {most}"
    return f"{count} on {placement.device}{threads}"


def exit_code(
    *, failed_units: int, ended: bool, rejected: int, duplicates: int, max_rejected: int
) -> ExitCode:
    """The highest code that applies."""
    if failed_units or ended:
        return ExitCode.FAILED_UNITS
    if duplicates or rejected > max_rejected:
        return ExitCode.REJECTED_ROWS
    return ExitCode.OK


def print_result(result: ScoreResult, console: Console) -> None:
    """A small table."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    state = "sealed" if result.sealed else "open: the same command goes on"
    table.add_row("run", f"{result.run} ({state})")
    table.add_row("units", f"{result.units_done} of {result.units}, {result.units_scored} just now")
    table.add_row("rows", f"{result.rows:,}")
    table.add_row("response tokens", f"{result.tokens:,}")
    if result.noise:
        table.add_row(*result.noise.as_row())
    for status, count in sorted(result.status.items()):
        if status != "ok":
            table.add_row("rejected", f"{count:,} {status}")
    if result.duplicate_sample_ids:
        table.add_row(
            "rejected", f"{result.duplicate_sample_ids:,} sample ids in several units (manifest)"
        )
    for name, cause in list(result.units_failed.items())[:5]:
        table.add_row("failed", f"{name}: {cause}")
    if len(result.units_failed) > 5:
        table.add_row("failed", f"... and {len(result.units_failed) - 5} more, under failed/")
    if result.ended:
        table.add_row("ended", result.ended)
    table.add_row("time", f"{result.seconds:.1f} s")
    console.print(table, highlight=False, soft_wrap=True)
