"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from dlogp_ray.config.job import RunOn

RunArgument = Annotated[str, typer.Argument(help="Folder or URL of a run: <output>/<run_id>.")]
JobArgument = Annotated[Path, typer.Argument(help="The job, a YAML file.")]
ActorsOption = Annotated[
    int | None, typer.Option(help="Number of actors, instead of the config's.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Instead of what the job file says, as in --set temperature=0.7 or --set "
        "policies.rl=checkpoints/rl; may be repeated.",
    ),
]
RunOnOption = Annotated[
    RunOn | None,
    typer.Option(
        help="here: in this process; ray: through Ray; auto: here where that is sooner (default: "
        "the config's, which is auto if it says nothing)."
    ),
]
TableRunOnOption = Annotated[
    RunOn,
    typer.Option(help="here: in this process; ray: through Ray; auto: here where that is sooner."),
]
TimeoutStartOption = Annotated[
    float | None,
    typer.Option(min=0, help="Seconds to wait for room in a Ray cluster, instead of the config's."),
]
SealPartialOption = Annotated[
    bool, typer.Option("--seal-partial", help="Seal the run although units failed.")
]
ProgressOption = Annotated[bool, typer.Option(help="Show progress on standard error.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the file of --out, if it is there.")
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print a line of JSON alone. Where standard output is no terminal, it is the last "
        "line in any case.",
    ),
]
JsonLogOption = Annotated[
    bool,
    typer.Option(
        "--json-log", help="Log events on standard error as JSON lines, instead of progress."
    ),
]
