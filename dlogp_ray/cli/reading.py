"""Looking at runs: ``show``, ``query``, ``compare``, ``verify``."""

import json
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, cast

import typer

from dlogp_ray.cli.application import app, epilog
from dlogp_ray.cli.interrupting import interruptible
from dlogp_ray.cli.options import JsonOption, OverwriteOption, ProgressOption, RunArgument
from dlogp_ray.cli.out import check_new, written
from dlogp_ray.cli.views_help import QueryCommand
from dlogp_ray.config import SparsityConfig
from dlogp_ray.errors import ExitCode, Refused, StoreFailed
from dlogp_ray.visible import visible


class Format(StrEnum):
    """How ``query`` prints rows."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


_READS = (ExitCode.FAILED_UNITS, ExitCode.DAMAGED)


@app.command(
    short_help="The runs in a folder or bucket, a line each.",
    epilog=epilog("dlogp runs s3://bucket/runs", ExitCode.FAILED_UNITS),
)
def runs(
    output: Annotated[str, typer.Argument(help="Folder or URL under which runs were made.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON a run.")] = False,
) -> None:
    """The runs in a folder or bucket, and in the folders in it: how far they are, what they say."""
    from dlogp_ray.analysis.listing import print_runs, runs_below
    from dlogp_ray.analysis.printing import for_people

    lines = list(runs_below(output))
    if as_json:
        for line in lines:
            typer.echo(json.dumps(line.as_json()))
    else:
        print_runs(lines, for_people(as_json=False))


@app.command(
    short_help="What ran, how far it is, its totals, and what went wrong.",
    epilog=epilog("dlogp show runs/my-run", *_READS),
)
def show(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    watching: Annotated[
        bool, typer.Option("--watch", help="Print a line now and then until the run is sealed.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two lines.")] = 10.0,
) -> None:
    """What ran, how far it is, its totals, and what was rejected or failed and why."""
    from dlogp_ray.analysis.overview import overview, print_overview
    from dlogp_ray.analysis.printing import for_people
    from dlogp_ray.tables.run import open_run

    if watching:
        from dlogp_ray.analysis.watching import watch

        for progress in watch(open_run(run), every):
            typer.echo(json.dumps(progress.as_json()) if as_json else str(progress))
        if as_json:
            return
    document = overview(open_run(run))
    if as_json:
        typer.echo(json.dumps(document.as_json()))
    else:
        print_overview(document, for_people(as_json=False))


@app.command(
    cls=QueryCommand,
    short_help="Ask a run's tables in SQL.",
    epilog=epilog(
        'dlogp query runs/my-run "SELECT generator, avg(delta_logp) FROM tokens GROUP BY 1"',
        *_READS,
    ),
)
def query(
    run: RunArgument,
    sql: Annotated[str, typer.Argument(help="DuckDB SQL over the run's views.")],
    form: Annotated[Format, typer.Option("--format", help="How to write rows.")] = Format.TABLE,
    out: Annotated[
        Path | None, typer.Option(help="Write to this file instead of standard output.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Ask a run's tables in SQL: scores, generations or weights, a row a token, and statistics."""
    from dlogp_ray.tables.output import shown_rows, write_rows
    from dlogp_ray.tables.run import open_run
    from dlogp_ray.tables.sql import connected_query, rows_read

    if form is Format.TABLE and out is not None:
        raise Refused(
            "--out: expected --format csv, json or parquet with it; a table is for people"
        )
    if out is not None:
        check_new(out, overwrite=overwrite)
    opened = open_run(run)
    if not opened.sealed:
        share = f"{len(opened.committed())} of {opened.planned} units"
        typer.echo(f"dlogp: the run is not sealed; the answer covers {share}", err=True)
    connection, relation = connected_query(opened, sql)
    with rows_read(opened), interruptible(connection.interrupt):
        if form is Format.TABLE:
            typer.echo(visible(shown_rows(relation, _width())))
        elif out is None:
            sys.stdout.flush()
            write_rows(relation, form.value, _standard_output(form))
        else:
            with written(out) as sink:
                write_rows(relation, form.value, sink)


def _width() -> int:
    """Columns of a table of rows, which is cut there."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200


def _standard_output(form: Format) -> IO[bytes]:
    """For rows; a terminal gets no control characters of theirs."""
    if not sys.stdout.isatty():
        return sys.stdout.buffer
    if form is Format.PARQUET:
        raise Refused("--format parquet: a terminal shows no Parquet; give --out FILE with it")
    return cast("IO[bytes]", _Shown())


class _Shown:
    def write(self, data: bytes) -> int:
        typer.echo(visible(data.decode().replace("\r\n", "\n")), nl=False)
        return len(data)


@app.command(
    short_help="Two runs' sparsity side by side, with differences and errors.",
    epilog=epilog("dlogp compare runs/step-100 runs/step-200", *_READS),
)
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
    from dlogp_ray.analysis.printing import for_people, print_whole
    from dlogp_ray.analysis.sparsity.comparing import (
        compared,
        headline_differences,
        notes,
        shared_samples,
    )
    from dlogp_ray.tables.run import open_run

    first, second = open_run(run_a), open_run(run_b)
    rows = compared(first.figures(name), second.figures(name))
    if as_json:
        for row in rows.to_pylist():
            typer.echo(json.dumps(row))
    else:
        console = for_people(as_json=False)
        print_whole(headline_differences(rows), console)
        for note in notes(rows, shared_samples(first, second)):
            console.print(note, highlight=False, soft_wrap=True)


@app.command(
    short_help="Read a whole run and name what is missing, damaged or changed.",
    epilog=epilog("dlogp verify runs/my-run", *_READS),
)
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
    progress: ProgressOption = True,
    as_json: JsonOption = False,
) -> None:
    """Read a whole run and name what is missing, damaged or changed."""
    from dlogp_ray.analysis.printing import for_people, for_programs
    from dlogp_ray.pipelines.run.progress import counted
    from dlogp_ray.tables.run import open_run
    from dlogp_ray.tables.verification import Fault, report, verify

    console = for_people(as_json=as_json)
    copied: list[str] = []

    def check() -> list[Fault]:
        opened = open_run(run)
        copied.clear()
        with counted("verifying", len(opened.committed()), "objects", enabled=progress) as advance:
            return verify(opened, advance, copied.append)

    problems = check()
    repaired: list[str] = []
    if problems and repair:
        from dlogp_ray.pipelines.repair import repair as repair_run

        for problem in problems:
            console.print(str(problem), markup=False, highlight=False, soft_wrap=True)
        repaired = sorted({problem.unit for problem in problems if problem.unit})
        ended = repair_run(open_run(run), problems, trusted=trust_run, progress=progress)
        if not ended.sealed:
            lost = "; ".join(f"{unit}: {why}" for unit, why in ended.units_failed.items())
            raise StoreFailed(f"{run}: the repair has not come to its end: {lost or ended.ended}")
        problems = check()
    lines, document = report(open_run(run), problems, repaired, sorted(copied))
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    for_programs(document, as_json=as_json)
    raise typer.Exit(ExitCode.DAMAGED if problems else ExitCode.OK)
