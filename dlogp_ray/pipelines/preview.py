"""What a job would do, for ``--plan``: tables for people, and the same as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.pipelines.calibrating import Calibrated
from dlogp_ray.pipelines.intervening import IntervenePlan
from dlogp_ray.pipelines.placement import Placement
from dlogp_ray.pipelines.planning import ScorePlan
from dlogp_ray.pipelines.probe import Probe
from dlogp_ray.tables.noise import NoiseFloor
from dlogp_ray.tables.special_tokens import special_token_rows

UNIT_SECONDS = (60, 300)
"""One to five minutes of one actor: little is lost with it, and little is spent on it."""


@dataclass(frozen=True)
class ScorePreview:
    """What a score job would do.

    Attributes:
        plan: Its units.
        probe: Its actors, and what one of them was seen to do.
        noise: The floor; None where it is not known.
        units_done: Units whose object is there already.
    """

    plan: ScorePlan
    probe: Probe
    noise: NoiseFloor | None
    units_done: int


@dataclass(frozen=True)
class IntervenePreview:
    """What an intervene job would do.

    Attributes:
        plan: Its units.
        placement: Of its actors.
        calibrated: Thresholds, and how fast one actor answers.
        units_done: Units whose object is there already.
    """

    plan: IntervenePlan
    placement: Placement
    calibrated: Calibrated
    units_done: int


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
    print_whole(table, console)
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


def print_intervene_plan(preview: IntervenePreview, console: Console) -> dict[str, Any]:
    """What an intervene job would do, for people; the same as a JSON document is returned."""
    plan, found = preview.plan, preview.calibrated
    units = plan.units
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("run", plan.job.run_uri)
    table.add_row("units", f"{len(units):,}, {preview.units_done:,} of them done")
    table.add_row("problems", f"{len(plan.problems):,}")
    for heading, fact in special_token_rows(plan.special_tokens):
        table.add_row(heading, fact)
    table.add_row("answers", f"{units.tokens:,}")
    table.add_row("actors", _where(preview.placement))
    speed = f"{found.answers_per_s:,.1f} answers/s of one actor, by one policy alone"
    table.add_row("measured", f"{speed}; what interventions have in common is decoded once")
    print_whole(table, console)
    console.print()
    rules = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("intervention", "threshold", "fired in the calibration"):
        rules.add_column(heading, justify="left" if heading == "intervention" else "right")
    for one in found.interventions:
        threshold = "" if one.threshold is None else f"{one.threshold:.4g}"
        rules.add_row(one.label, threshold, "" if one.reached is None else f"{one.reached:.2%}")
    print_whole(rules, console)
    for left in found.left_out:
        console.print(f"left out: {left.label}: {left.reason}", highlight=False, soft_wrap=True)
    return {
        "run": plan.job.run_uri,
        "units": len(units),
        "units_done": preview.units_done,
        "problems": len(plan.problems),
        "special_tokens": plan.special_tokens,
        "answers": units.tokens,
        "actors": preview.placement.max_actors,
        "answers_per_s_per_actor": found.answers_per_s,
        "interventions": [asdict(one) for one in found.interventions],
        "left_out": {one.label: one.reason for one in found.left_out},
    }


def _where(placement: Placement) -> str:
    threads = f", {placement.threads} threads each" if placement.threads > 1 else ""
    least, most = placement.min_actors, placement.max_actors
    count = f"{most}" if least == most else f"{least} to {most}"
    return f"{count} on {placement.device}{threads}"
