"""Jobs over a run's table: ``sparsity``, ``reweight``."""

import functools
from typing import Annotated

import typer

from dlogp_ray.cli.application import EXIT_CODES, app, conclude
from dlogp_ray.cli.options import ProgressOption, RunArgument, TableRunOnOption
from dlogp_ray.config import SCHEMES, ReweightConfig, SparsityConfig
from dlogp_ray.config.spelling import spelled_schemes

SchemeOption = Annotated[float | None, typer.Option(help="Of the scheme that has it.")]


@app.command(epilog=EXIT_CODES)
def sparsity(
    run: RunArgument,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="A column to split by, besides policy and generator; may be repeated. At most 100 "
            "groups in all."
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            help="Of the analysis: its tables go to <run>/sparsity/<name>, in place of those there."
        ),
    ] = SparsityConfig.model_fields["name"].default,
    partial: Annotated[
        bool, typer.Option("--partial", help="Analyse a run that is not sealed, as far as it is.")
    ] = False,
    llama_cpp: Annotated[
        bool,
        typer.Option(
            "--llama-cpp", help="Print what llama.cpp's perplexity --kl-divergence prints as well."
        ),
    ] = False,
    run_on: TableRunOnOption = "auto",
    progress: ProgressOption = True,
) -> None:
    """Where, in which direction and how sparsely RL changed the policy. Last line: JSON."""
    config = SparsityConfig.from_mapping(
        {"run": run, "by": by or [], "name": name, "partial": partial, "run_on": run_on},
        source="sparsity",
    )
    from dlogp_ray.pipelines.sparsity.result import print_sparsity
    from dlogp_ray.pipelines.sparsity.sparsity import sparsity as run_job

    conclude(
        run_job(config, progress=progress), functools.partial(print_sparsity, llama_cpp=llama_cpp)
    )


@app.command(epilog=EXIT_CODES)
def reweight(
    run: RunArgument,
    scheme: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[:PARAMETER=VALUE,...]",
            help=f"{', '.join(SCHEMES)}; may be repeated: weights are multiplied.",
        ),
    ],
    alpha: SchemeOption = None,
    beta: SchemeOption = None,
    rho: SchemeOption = None,
    scale: SchemeOption = None,
    low: SchemeOption = None,
    high: SchemeOption = None,
    half_life: SchemeOption = None,
    max_ratio: Annotated[
        str | None, typer.Option(help="Of the scheme that has it; none for no such limit.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="The scored policy that generated the texts (default: what their generator says)."
        ),
    ] = None,
    rl: Annotated[
        str | None,
        typer.Option(help="Of several compared policies, the one whose Δlog p is meant."),
    ] = None,
    mean_one: Annotated[
        bool, typer.Option("--mean-one", help="Divide weights by their mean over each text.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="Of the table: <run>/weights/<name> (default: the schemes' names)."),
    ] = None,
    run_on: TableRunOnOption = "auto",
    progress: ProgressOption = True,
) -> None:
    """A weight for each token's loss or advantage, as a table for trainers. Last line: JSON."""
    given = {
        "alpha": alpha,
        "beta": beta,
        "rho": rho,
        "scale": scale,
        "low": low,
        "high": high,
        "half_life": half_life,
        "max_ratio": max_ratio,
    }
    config = ReweightConfig.from_mapping(
        {
            "run": run,
            "schemes": spelled_schemes(scheme, {k: v for k, v in given.items() if v is not None}),
            "name": name,
            "policy": policy,
            "rl": rl,
            "mean_one": mean_one,
            "run_on": run_on,
        },
        source="reweight",
    )
    from dlogp_ray.pipelines.reweight.result import print_reweight
    from dlogp_ray.pipelines.reweight.reweight import reweight as run_job

    conclude(run_job(config, progress=progress), print_reweight)
