"""Jobs over a run's table: ``sparsity``, ``reweight``."""

import functools
from typing import Annotated

import typer

from dlogp_ray.cli.application import app, conclude, epilog
from dlogp_ray.cli.options import JsonOption, ProgressOption, RunArgument, TableRunOnOption
from dlogp_ray.config import ReweightConfig, SparsityConfig
from dlogp_ray.config.spelling import spelled_schemes, spellings
from dlogp_ray.errors import ExitCode

_CODES = (ExitCode.FAILED_UNITS, ExitCode.DAMAGED, ExitCode.INTERRUPTED)


@app.command(
    short_help="Where, in which direction and how sparsely RL changed the policy.",
    epilog=epilog("dlogp sparsity runs/my-run --by reward --name by-reward", *_CODES),
)
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
    as_json: JsonOption = False,
) -> None:
    """Where, in which direction and how sparsely RL changed the policy."""
    config = SparsityConfig.from_mapping(
        {"run": run, "by": by or [], "name": name, "partial": partial, "run_on": run_on},
        source="sparsity",
    )
    from dlogp_ray.pipelines.sparsity.result import print_sparsity
    from dlogp_ray.pipelines.sparsity.sparsity import sparsity as run_job

    in_words = functools.partial(print_sparsity, llama_cpp=llama_cpp)
    conclude(run_job(config, progress=progress), in_words, as_json=as_json)


@app.command(
    short_help="A weight for each token's loss or advantage, as a table.",
    epilog=epilog(
        "dlogp reweight runs/my-run --scheme low_prob:alpha=0.2",
        *_CODES,
        more=("Schemes with their parameters and defaults:", *map("  {}".format, spellings())),
    ),
)
def reweight(
    run: RunArgument,
    scheme: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[:PARAMETER=VALUE,...]",
            help="A scheme, as below; may be repeated: weights are multiplied.",
        ),
    ],
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
    as_json: JsonOption = False,
) -> None:
    """A weight for each token's loss or advantage, as a table for trainers."""
    config = ReweightConfig.from_mapping(
        {
            "run": run,
            "schemes": spelled_schemes(scheme),
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

    conclude(run_job(config, progress=progress), print_reweight, as_json=as_json)
