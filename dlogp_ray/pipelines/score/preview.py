"""What a score job would do, for ``--plan``: a table for people, and the same as JSON."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.pipelines.score.plan import ScorePlan
from dlogp_ray.pipelines.score.probe import Probe
from dlogp_ray.tables.noise import NoiseFloor

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


def _took(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.1f} seconds"


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
    table.add_row("actors", placement.in_words())
    speed = f"{plan.probe.tokens_per_s:,.0f} tokens/s"
    table.add_row("expected", f"{_took(hours)} at {speed} an actor (one measured alone)")
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
