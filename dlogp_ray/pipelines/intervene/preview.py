"""What an intervene job would do, for ``--plan``: tables for people, and the same as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.pipelines.intervene.plan import IntervenePlan
from dlogp_ray.pipelines.intervene.probe import Calibrated
from dlogp_ray.pipelines.run.placement import Placement
from dlogp_ray.tables.special_tokens import special_token_rows


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


def print_intervene_plan(preview: IntervenePreview, console: Console) -> dict[str, Any]:
    """What an intervene job would do, for people; the same as a JSON document is returned."""
    plan, calibrated = preview.plan, preview.calibrated
    units = plan.units
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("run", plan.job.run_uri)
    table.add_row("units", f"{len(units):,}, {preview.units_done:,} of them done")
    table.add_row("problems", f"{len(plan.problems):,}")
    for heading, fact in special_token_rows(plan.special_tokens):
        table.add_row(heading, fact)
    table.add_row("answers", f"{units.tokens:,}")
    table.add_row("actors", preview.placement.in_words())
    speed = f"{calibrated.answers_per_s:,.1f} answers/s of one actor, by one policy alone"
    table.add_row("measured", f"{speed}; what interventions have in common is decoded once")
    print_whole(table, console)
    console.print()
    rules = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("intervention", "threshold", "fired in the calibration"):
        rules.add_column(heading, justify="left" if heading == "intervention" else "right")
    for variant in calibrated.interventions:
        threshold = "" if variant.threshold is None else f"{variant.threshold:.4g}"
        rules.add_row(
            variant.label, threshold, "" if variant.reached is None else f"{variant.reached:.2%}"
        )
    print_whole(rules, console)
    for left in calibrated.left_out:
        console.print(f"left out: {left.label}: {left.reason}", highlight=False, soft_wrap=True)
    return {
        "run": plan.job.run_uri,
        "units": len(units),
        "units_done": preview.units_done,
        "problems": len(plan.problems),
        "special_tokens": plan.special_tokens,
        "answers": units.tokens,
        "actors": preview.placement.max_actors,
        "answers_per_s_per_actor": calibrated.answers_per_s,
        "interventions": [asdict(variant) for variant in calibrated.interventions],
        "left_out": {left.label: left.reason for left in calibrated.left_out},
    }
