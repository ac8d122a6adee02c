"""How a job ended that makes a run: what is in it, the exit code, a table for people."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from dlogp_ray.errors import ExitCode
from dlogp_ray.pipelines.run.clock import Clock
from dlogp_ray.pipelines.run.make_run import Made
from dlogp_ray.status import Status, count_rejected
from dlogp_ray.tables.calls import spent_in_words
from dlogp_ray.tables.special_tokens import special_token_rows


@dataclass(frozen=True)
class RunResult:
    """The end of a job that makes a run.

    Attributes:
        run: Address of the run.
        sealed: Whether the run is complete and closed.
        units: Work units of the run.
        units_done: Those whose object is there.
        units_created: Those that this call has done.
        units_failed: Those that could not be done: name -> cause.
        ended: Why Ray ended this call before all units were tried; None if not.
        rows: Rows of the table.
        status: Rows by status; all but "ok" are rejected.
        duplicate_sample_ids: Sample ids that stand in more than one unit.
        tokens: Response tokens in the table.
        special_tokens: Rows of the corpus, or problems, by what is special about their text, as
            ``tables.special_tokens`` names it.
        seconds: Wall-clock time of this call.
        spent: Of it, by what it went into, as ``clock.PHASES`` has it.
        exit_code: See ``errors.ExitCode``.
    """

    run: str
    sealed: bool
    units: int
    units_done: int
    units_created: int
    units_failed: dict[str, str]
    ended: str | None
    rows: int
    status: dict[str, int]
    duplicate_sample_ids: int
    tokens: int
    special_tokens: dict[str, int]
    seconds: float
    spent: dict[str, float]
    exit_code: int

    def as_json(self) -> dict[str, Any]:
        """All fields, for the last line of output."""
        return asdict(self)

    @property
    def rejected(self) -> int:
        """Rows whose status is not ok."""
        return count_rejected(self.status)


def common_result(made: Made, clock: Clock, max_rejected: int) -> dict[str, Any]:
    """The fields that every job's result has, and the exit code that follows from them.

    Args:
        made: The run after the job.
        clock: Of this call.
        max_rejected: As the config says.
    """
    run, outcome = made.run, made.outcome
    totals = run.totals()
    recorded = {name: record["cause"] for name, record in run.failures().items()}
    failures = dict(
        sorted((recorded | {name: failure.cause for name, failure in made.failed.items()}).items())
    )
    code = exit_code(
        failed_units=len(failures),
        sealed=run.sealed,
        rejected=count_rejected(totals["status"]),
        duplicates=totals["duplicate_sample_ids"]
        + totals["status"].get(Status.DUPLICATE_SAMPLE_ID, 0),
        max_rejected=max_rejected,
    )
    return {
        "run": run.uri,
        "sealed": run.sealed,
        "units": run.planned,
        "units_done": totals["units"],
        "units_created": outcome.created,
        "units_failed": failures,
        "ended": outcome.ended,
        "rows": totals["rows"],
        "status": totals["status"],
        "duplicate_sample_ids": totals["duplicate_sample_ids"],
        "tokens": totals["tokens"],
        "special_tokens": totals.get("special_tokens", {}),
        "seconds": round(clock.seconds, 1),
        "spent": clock.spent,
        "exit_code": int(code),
    }


def exit_code(
    *, failed_units: int, sealed: bool, rejected: int, duplicates: int, max_rejected: int
) -> ExitCode:
    """The highest code that applies."""
    if failed_units or not sealed:
        return ExitCode.FAILED_UNITS
    if duplicates or rejected > max_rejected:
        return ExitCode.REJECTED_ROWS
    return ExitCode.OK


def result_table(result: RunResult, measured: Sequence[tuple[str, str]] = ()) -> Table:
    """A small table of how a job ended; ``measured`` are more headings with their facts."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    state = "sealed" if result.sealed else "open: the same command goes on"
    table.add_row("run", f"{result.run} ({state})")
    table.add_row(
        "units", f"{result.units_done} of {result.units}, {result.units_created} just now"
    )
    table.add_row("rows", f"{result.rows:,}")
    table.add_row("response tokens", f"{result.tokens:,}")
    for heading, fact in measured:
        table.add_row(heading, fact)
    for heading, fact in special_token_rows(result.special_tokens):
        table.add_row(heading, fact)
    for status, count in sorted(result.status.items()):
        if status != Status.OK:
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
    table.add_row("time", spent_in_words(result.seconds, result.spent))
    return table
