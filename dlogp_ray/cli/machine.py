"""What a machine and its stores can do: ``doctor``, ``bench``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dlogp_ray.cli.application import app, epilog
from dlogp_ray.cli.options import JsonOption, OverwriteOption, ProgressOption
from dlogp_ray.cli.out import check_new, written
from dlogp_ray.config import BenchConfig
from dlogp_ray.config.bench import ARMS
from dlogp_ray.errors import ExitCode, Refused

BENCH_OPTIONS = ("base", "rl", "arms", "vllm_python", "lm_eval_python")
"""Fields of the benchmark that have an option of their own."""


@app.command(
    short_help="Try whether a store is fit for runs.",
    epilog=epilog("dlogp doctor s3://bucket/runs", ExitCode.FAILED_UNITS, ExitCode.MISMATCH),
)
def doctor(
    output: Annotated[str, typer.Argument(help="Folder or URL under which runs are to be made.")],
    writers: Annotated[
        int, typer.Option(min=2, max=1024, help="Writers that race to create one object.")
    ] = 16,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Races.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Try whether a store is fit for runs: access, conditional create, listing."""
    from dlogp_ray.analysis.printing import for_people, for_programs
    from dlogp_ray.store import absolute
    from dlogp_ray.store.fitness import examine, print_findings

    address = absolute(output)
    typer.echo(f"trying {address}; a server that does not answer is asked for 90 s", err=True)
    findings = examine(address, writers=writers, rounds=rounds)
    found = print_findings(output, findings, for_people(as_json=as_json))
    for_programs(found, as_json=as_json)
    raise typer.Exit(ExitCode.OK if all(f.fit for f in findings) else ExitCode.MISMATCH)


@app.command(
    short_help="This machine's speed on a pair, beside other engines.",
    epilog=epilog("dlogp bench --base checkpoints/base --rl checkpoints/rl --arm pair"),
)
def bench(
    base: Annotated[
        str | None, typer.Option(help="Base policy: folder or hub id (default: the demo pair).")
    ] = None,
    rl: Annotated[str | None, typer.Option(help="The other policy.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="A field: "
            + ", ".join(f for f in BenchConfig.model_fields if f not in BENCH_OPTIONS)
            + ".",
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help=f"What to measure; may be repeated (default: all): {', '.join(ARMS)}."),
    ] = None,
    vllm_python: Annotated[
        str | None, typer.Option(help="A Python that has vLLM, to be measured beside.")
    ] = None,
    lm_eval_python: Annotated[
        str | None, typer.Option(help="A Python that has lm-eval, to be measured beside.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
    as_json: JsonOption = False,
) -> None:
    """This machine's speed on a pair, beside naive loops and other engines.

    Says beforehand how long it will take. The naive loops get as many texts as a minute allows.
    """
    if out is not None:
        check_new(out, overwrite=overwrite)
    if (base is None) != (rl is None):
        raise Refused("expected both --base and --rl, or neither for the demo pair; got one")
    if base is None or rl is None:
        from dlogp_ray.demo.pair import checkpoint_path, rl_name

        base, rl = str(checkpoint_path("base")), str(checkpoint_path(rl_name()))
    values: dict[str, object] = {
        "base": base,
        "rl": rl,
        "arms": arm or None,
        "vllm_python": vllm_python,
        "lm_eval_python": lm_eval_python,
    }
    for setting in settings or []:
        field, equals, value = setting.partition("=")
        if not equals:
            raise Refused(f"--set {setting}: expected FIELD=VALUE, as in --set texts=96")
        values[field] = value
    config = BenchConfig.from_mapping(values, source="bench")
    from dlogp_ray.analysis.printing import for_people, for_programs
    from dlogp_ray.bench.result import print_bench
    from dlogp_ray.bench.run import run_bench
    from dlogp_ray.pipelines.run.stop import stop_on_sigterm

    with stop_on_sigterm("nothing was written"):
        result = run_bench(config, progress=progress)
    if out is not None:
        with written(out) as sink:
            sink.write((json.dumps(result, indent=2) + "\n").encode())
    print_bench(result, for_people(as_json=as_json))
    for_programs(result, as_json=as_json)
