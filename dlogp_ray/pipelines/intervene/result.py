"""How an intervene job ended: its curve."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from dlogp_ray.analysis.curve import Point, first_to_reach_rl
from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.pipelines.run.clock import Clock
from dlogp_ray.pipelines.run.make_run import Made
from dlogp_ray.pipelines.run.result import RunResult, common_result, result_table
from dlogp_ray.tables.info import InterveneInfo


@dataclass(frozen=True)
class InterveneResult(RunResult):
    """The end of an intervene job; rows are answers.

    Attributes:
        left_out: Interventions that no threshold gives: label -> reason.
        cut_off: Answers that ended at ``max_tokens``, once the run is sealed.
        curve: A point an intervention, once the run is sealed.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    cut_off: int = 0
    curve: tuple[Point, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All fields, for the last line of output."""
        reached = {
            rule: point and point.label for rule, point in first_to_reach_rl(self.curve).items()
        }
        return super().as_json() | {"not_graded": self.rejected, "reaches_rl": reached}


def summarise_answered(
    made: Made, curve: Sequence[Point], clock: Clock, max_rejected: int
) -> InterveneResult:
    """What is in the run; rejected are rows that nobody could grade."""
    info = made.run.info_of(InterveneInfo)
    left_out = {wanted.label: wanted.reason for wanted in info.left_out}
    common = common_result(made, clock, max_rejected)
    common["special_tokens"] = info.special_tokens
    cut_off = 0
    if made.run.sealed:
        ((cut_off,),) = made.run.sql(
            "SELECT count(*) FROM generations WHERE finish = 'length'"
        ).fetchall()
    return InterveneResult(**common, left_out=left_out, cut_off=cut_off, curve=tuple(curve))


def print_intervene(result: InterveneResult, console: Console) -> None:
    """A small table, and the curve."""
    print_whole(result_table(result), console)
    _print_curve(result, console)
    if result.cut_off:
        console.print(
            f"{result.cut_off / result.rows:.1%} of the answers were cut at max_tokens, and did "
            "not end by themselves: give more, or stop_strings after which nothing counts",
            highlight=False,
            soft_wrap=True,
        )


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
            passed = [
                _with_error(estimate.value, estimate.se)
                for estimate in point.pass_at
                if estimate.k == most
            ]
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
