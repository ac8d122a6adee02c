"""Jobs that make a run with policies: ``score``, ``intervene``."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from dlogp_ray.cli.application import app, conclude, epilog
from dlogp_ray.cli.options import (
    ActorsOption,
    JobArgument,
    JsonLogOption,
    JsonOption,
    ProgressOption,
    RunOnOption,
    SealPartialOption,
    SetOption,
    TimeoutStartOption,
)
from dlogp_ray.config import InterveneConfig, ScoreConfig
from dlogp_ray.errors import ExitCode
from dlogp_ray.pipelines.run.cost import begin

AnyConfig = TypeVar("AnyConfig", ScoreConfig, InterveneConfig)

_CODES = (
    ExitCode.REJECTED_ROWS,
    ExitCode.FAILED_UNITS,
    ExitCode.MISMATCH,
    ExitCode.DAMAGED,
    ExitCode.INTERRUPTED,
)


@app.command(
    short_help="Score a corpus; run it again to do what is missing.",
    epilog=epilog("dlogp score job.yaml", *_CODES),
)
def score(
    config: JobArgument,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print units, tokens, bytes and hours, and stop.")
    ] = False,
    settings: SetOption = None,
    actors: ActorsOption = None,
    run_on: RunOnOption = None,
    timeout_start: TimeoutStartOption = None,
    seal_partial: SealPartialOption = False,
    progress: ProgressOption = True,
    json_log: JsonLogOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score a corpus; run it again to do what is missing."""
    given: dict[str, Any] = {"actors": actors, "run_on": run_on, "timeout_start": timeout_start}
    given |= {"seal_partial": seal_partial or None}
    job = _begun(ScoreConfig, config, settings, given, json_log)
    if plan:
        from dlogp_ray.analysis.printing import for_people, for_programs
        from dlogp_ray.pipelines.score.preview import print_plan
        from dlogp_ray.pipelines.score.score import preview

        console = for_people(as_json=as_json)
        for_programs(print_plan(preview(job), console), as_json=as_json)
        return
    from dlogp_ray.pipelines.score.result import print_score
    from dlogp_ray.pipelines.score.score import score as run_job

    result = run_job(job, progress=progress and not json_log)
    conclude(result, print_score, as_json=as_json)
    raise typer.Exit(result.exit_code)


@app.command(
    short_help="Answer problems with both policies together, and grade.",
    epilog=epilog("dlogp intervene intervene.yaml --plan", *_CODES),
)
def intervene(
    config: JobArgument,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print units, answers and thresholds, and stop.")
    ] = False,
    settings: SetOption = None,
    actors: ActorsOption = None,
    run_on: RunOnOption = None,
    timeout_start: TimeoutStartOption = None,
    seal_partial: SealPartialOption = False,
    progress: ProgressOption = True,
    json_log: JsonLogOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer problems with both policies together, grade, and draw the curve."""
    given: dict[str, Any] = {"actors": actors, "run_on": run_on, "timeout_start": timeout_start}
    given |= {"seal_partial": seal_partial or None}
    job = _begun(InterveneConfig, config, settings, given, json_log)
    if plan:
        from dlogp_ray.analysis.printing import for_people, for_programs
        from dlogp_ray.pipelines.intervene.intervene import preview
        from dlogp_ray.pipelines.intervene.preview import print_intervene_plan

        console = for_people(as_json=as_json)
        for_programs(print_intervene_plan(preview(job), console), as_json=as_json)
        return
    from dlogp_ray.pipelines.intervene.intervene import intervene as run_job
    from dlogp_ray.pipelines.intervene.result import print_intervene

    result = run_job(job, progress=progress and not json_log)
    conclude(result, print_intervene, as_json=as_json)
    raise typer.Exit(result.exit_code)


def _begun(
    kind: type[AnyConfig],
    path: Path,
    settings: list[str] | None,
    given: dict[str, Any],
    json_log: bool,
) -> AnyConfig:
    """The job of a file, with what the command line says instead; None is not said."""
    if json_log:
        from dlogp_ray.events import log_to_standard_error

        log_to_standard_error()
    job = kind.from_yaml(path, settings or (), **given)
    begin(job)
    return job


@app.command(
    "corpus",
    short_help="Look at a job's corpus before it is scored.",
    epilog=epilog("dlogp corpus job.yaml --sample 3"),
)
def look_at_corpus(
    config: JobArgument,
    settings: SetOption = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Rows of each file whose tokens are shown.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Look at a job's corpus before it is scored: first rows as tokens, and warnings.

    Prompts and responses are shown as the policies will see them: special tokens in «», masked ones
    in ⟦⟧. Needs the policies' tokenizers alone.
    """
    from dlogp_ray.analysis.printing import for_people, for_programs
    from dlogp_ray.pipelines.score.look import look
    from dlogp_ray.pipelines.score.look_printing import print_look

    seen = look(ScoreConfig.from_yaml(config, settings or ()), shown=sample)
    print_look(seen, for_people(as_json=as_json))
    for_programs(seen.as_json(), as_json=as_json)
