"""How a job ended: what is in the run, the exit code, a table for people."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from dlogp_ray.analysis.curve import Point, first_to_reach_rl
from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.errors import ExitCode
from dlogp_ray.pipelines.clock import Clock
from dlogp_ray.pipelines.making import Made
from dlogp_ray.status import Status, count_rejected
from dlogp_ray.tables.calls import spent_in_words
from dlogp_ray.tables.info import InterveneInfo
from dlogp_ray.tables.noise import NoiseFloor
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

    @property
    def rejected(self) -> int:
        """Rows whose status is not ok."""
        return count_rejected(self.status)


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
        fields = asdict(self) | {"rejected": self.rejected, "units_scored": self.units_scored}
        del fields["units_created"]
        return fields | {"noise": self.noise and self.noise.model_dump()}


@dataclass(frozen=True)
class InterveneResult(RunResult):
    """The end of an intervene job; rows are answers.

    Attributes:
        left_out: Interventions that no threshold gives: label -> reason.
        curve: A point an intervention, once the run is sealed.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    curve: tuple[Point, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All fields, for the last line of output."""
        reached = {
            rule: point and point.label for rule, point in first_to_reach_rl(self.curve).items()
        }
        return asdict(self) | {"not_graded": self.rejected, "reaches_rl": reached}


def summarise_run(made: Made, clock: Clock, max_rejected: int) -> ScoreResult:
    """What is in the run, and the exit code that follows from it.

    Args:
        made: The run after the job.
        clock: Of this call.
        max_rejected: As the config says.
    """
    return ScoreResult(
        **_common(made, clock, max_rejected),
        noise=made.run.noise,
        units_uncompiled=made.outcome.uncompiled,
    )


def summarise_answered(
    made: Made, curve: Sequence[Point], clock: Clock, max_rejected: int
) -> InterveneResult:
    """The same for an intervene job, whose rejected rows are those that nobody could grade."""
    left_out = {one.label: one.reason for one in made.run.info_of(InterveneInfo).left_out}
    common = _common(made, clock, max_rejected)
    return InterveneResult(**common, left_out=left_out, curve=tuple(curve))


def _common(made: Made, clock: Clock, max_rejected: int) -> dict[str, Any]:
    run, outcome = made.run, made.outcome
    totals = run.totals()
    # Of problems the record says them, of rows of the corpus the objects.
    of_problems = isinstance(run.info, InterveneInfo) and run.info.special_tokens
    special_tokens = of_problems or totals.get("special_tokens", {})
    recorded = {name: record["cause"] for name, record in run.failures().items()}
    failures = dict(sorted((recorded | dict(made.failed)).items()))
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
        "special_tokens": special_tokens,
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


def print_result(result: RunResult, console: Console) -> None:
    """A small table; of an intervene job, its curve as well."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    state = "sealed" if result.sealed else "open: the same command goes on"
    table.add_row("run", f"{result.run} ({state})")
    table.add_row(
        "units", f"{result.units_done} of {result.units}, {result.units_created} just now"
    )
    table.add_row("rows", f"{result.rows:,}")
    table.add_row("response tokens", f"{result.tokens:,}")
    if isinstance(result, ScoreResult) and result.noise:
        table.add_row(*result.noise.as_row())
    if isinstance(result, ScoreResult) and result.units_uncompiled:
        gave_up = "torch.compile gave up there (the log's `uncompiled` says on what)"
        table.add_row("uncompiled", f"{result.units_uncompiled} units, in part: {gave_up}")
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
    print_whole(table, console)
    if isinstance(result, InterveneResult):
        _print_curve(result, console)


def _print_curve(result: InterveneResult, console: Console) -> None:
    if result.curve:
        console.print()
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("intervention")
        headings = ["fired", "changed", "right", "against RL (95 %)", "p", "tokens"]
        most = max((p.pass_at[-1].k for p in result.curve if p.pass_at), default=1)
        if most > 1:
            headings.append(f"pass@{most}")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for point in result.curve:
            passed = [_with_error(one.value, one.se) for one in point.pass_at if one.k == most]
            table.add_row(
                point.label,
                f"{point.trigger_rate:.2%}",
                f"{point.effective_rate:.2%}",
                "none graded" if point.accuracy is None else _with_error(point.accuracy, point.se),
                _difference(point),
                _p(point.against_rl_p),
                f"{point.length:.1f}",
                *passed,
            )
        print_whole(table, console)
        for rule, reached in first_to_reach_rl(result.curve).items():
            line = f"{rule} has RL's accuracy at no rate that was tried"
            if reached is not None:
                fired, changed = reached.trigger_rate, reached.effective_rate
                line = f"{rule} has RL's accuracy, firing at {fired:.2%} of the tokens, changing "
                line += f"{changed:.2%}; the difference is {_difference(reached)}"
            console.print(line, highlight=False, soft_wrap=True)
        console.print(f"tables and pictures: {result.run}/*.parquet, *.svg, *.png", soft_wrap=True)
    for label, reason in result.left_out.items():
        console.print(f"left out: {label}: {reason}", highlight=False, soft_wrap=True)


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2g}" if value > 0 else "<1e-300"  # beyond float64


def _with_error(value: float, se: float | None) -> str:
    return f"{value:.2%}" if se is None else f"{value:.2%} ± {se:.2%}"


def _difference(point: Point) -> str:
    low, high = point.against_rl_ci_low, point.against_rl_ci_high
    if point.against_rl is None:
        return ""
    if low is None or high is None:
        return f"{point.against_rl:+.2%}"
    return f"{point.against_rl:+.2%} ({low:+.2%} to {high:+.2%})"
