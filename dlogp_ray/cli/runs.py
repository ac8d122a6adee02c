"""Jobs that make a run with policies: ``score``, ``intervene``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dlogp_ray.cli.application import EXIT_CODES, app, conclude
from dlogp_ray.cli.options import (
    ActorsOption,
    JobArgument,
    JsonLogOption,
    ProgressOption,
    RunOnOption,
    SealPartialOption,
    TimeoutStartOption,
)
from dlogp_ray.config import InterveneConfig, ScoreConfig
from dlogp_ray.errors import Interrupted
from dlogp_ray.pipelines.run.cost import begin

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from dlogp_ray.pipelines.run.result import RunResult

    AnyConfig = TypeVar("AnyConfig", ScoreConfig, InterveneConfig)
    AnyResult = TypeVar("AnyResult", bound=RunResult)


@app.command(epilog=EXIT_CODES)
def score(
    config: JobArgument,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print units, tokens, bytes and hours, and stop.")
    ] = False,
    actors: ActorsOption = None,
    run_on: RunOnOption = None,
    timeout_start: TimeoutStartOption = None,
    seal_partial: SealPartialOption = False,
    progress: ProgressOption = True,
    json_log: JsonLogOption = False,
) -> None:
    """Score a corpus; run it again to do what is missing. The last line printed is JSON."""
    given = {"actors": actors, "run_on": run_on, "timeout_start": timeout_start}
    job = _begun(ScoreConfig, config, given | {"seal_partial": seal_partial or None}, json_log)
    if plan:
        from rich.console import Console

        from dlogp_ray.pipelines.score.preview import print_plan
        from dlogp_ray.pipelines.score.score import preview

        typer.echo(json.dumps(print_plan(preview(job), Console())))
        return
    from dlogp_ray.pipelines.score.result import print_score
    from dlogp_ray.pipelines.score.score import score as run_job

    _end(lambda: run_job(job, progress=progress and not json_log), print_score)


@app.command(epilog=EXIT_CODES)
def intervene(
    config: JobArgument,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print units, answers and thresholds, and stop.")
    ] = False,
    actors: ActorsOption = None,
    run_on: RunOnOption = None,
    timeout_start: TimeoutStartOption = None,
    seal_partial: SealPartialOption = False,
    progress: ProgressOption = True,
    json_log: JsonLogOption = False,
) -> None:
    """Answer problems with both policies together, grade, and draw the curve. Last line: JSON."""
    given = {"actors": actors, "run_on": run_on, "timeout_start": timeout_start}
    job = _begun(InterveneConfig, config, given | {"seal_partial": seal_partial or None}, json_log)
    if plan:
        from rich.console import Console

        from dlogp_ray.pipelines.intervene.intervene import preview
        from dlogp_ray.pipelines.intervene.preview import print_intervene_plan

        typer.echo(json.dumps(print_intervene_plan(preview(job), Console())))
        return
    from dlogp_ray.pipelines.intervene.intervene import intervene as run_job
    from dlogp_ray.pipelines.intervene.result import print_intervene

    _end(lambda: run_job(job, progress=progress and not json_log), print_intervene)


def _begun(
    kind: "type[AnyConfig]", path: Path, given: dict[str, Any], json_log: bool
) -> "AnyConfig":
    """The job of a file, with what the command line says instead; None is not said."""
    if json_log:
        from dlogp_ray.events import log_to_standard_error

        log_to_standard_error()
    job = kind.from_yaml(path, **given)
    begin(job)
    return job


def _end(
    run_job: "Callable[[], AnyResult]", print_result: "Callable[[AnyResult, Console], None]"
) -> None:
    """Run a job, print how it ended, and exit with its code."""
    try:
        result = run_job()
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; what is committed stays, the same command goes on"
        ) from None
    conclude(result, print_result)
    raise typer.Exit(result.exit_code)
