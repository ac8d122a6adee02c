"""What commands are added to, and how any of them ends."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer
from typer.core import TyperGroup

from dlogp_ray.errors import DlogpError, ExitCode, Interrupted, Refused
from dlogp_ray.pipelines.run.session import shutdown
from dlogp_ray.visible import visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console


class Result(Protocol):
    """How a job ended."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""


AnyResult = TypeVar("AnyResult", bound=Result)

_MEANINGS = {
    ExitCode.OK: "0 all done",
    ExitCode.REFUSED: "2 refused before work began",
    ExitCode.REJECTED_ROWS: "3 rows were rejected or answers not graded (more than max_rejected), "
    "or sample ids occur twice",
    ExitCode.FAILED_UNITS: "4 units failed, the others are done; or a store does not answer",
    ExitCode.MISMATCH: "5 the run exists and was made from something else, or the store is not fit",
    ExitCode.DAMAGED: "6 an object of the run is missing, damaged or changed",
    ExitCode.INTERRUPTED: "130 and 143 stopped, the same command resumes",
    ExitCode.CLOSED: "141 whoever read standard output closed it",
}


def epilog(example: str, *codes: ExitCode, more: Sequence[str] = ()) -> str:
    """What a command's help ends with: how it is called, and how it exits.

    Args:
        example: A call of it.
        codes: That it can end with, where that is more than 0 and 2.
        more: Lines that stand before, as they are.
    """
    told = "; ".join(_MEANINGS[code] for code in (ExitCode.OK, ExitCode.REFUSED, *codes))
    exits = f"Exit codes: {told}." if codes else "Exit codes: dlogp --help."
    return "\n\n".join([*map(_as_it_is, [more] if more else []), f"Example: {example}", exits])


def _as_it_is(lines: Sequence[str]) -> str:
    """A paragraph whose lines click does not fill."""
    return "\n".join(["\b", *lines])


_COMMITS = ("score", "intervene", "sparsity", "reweight", "verify", "demo")
"""Commands of which something may stay."""


class _Commands(TyperGroup):
    """Of any of them, Ctrl-C is an error with a code of its own."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was called."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            _put_in_words(error)
            raise
        except BrokenPipeError:
            # Whoever read has seen enough; nothing more can be written there at the end either.
            sys.stdout = open(os.devnull, "w")
            raise typer.Exit(ExitCode.CLOSED) from None
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            sys.stdout = open(os.devnull, "w")
            raise Refused(f"standard output: {error.strerror}") from None
        except KeyboardInterrupt:
            # Another one would cut short what Python and Ray do at the process's end.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            goes_on = "; what is committed stays, the same command goes on"
            does_work = ctx.invoked_subcommand in _COMMITS
            raise Interrupted(f"interrupted{goes_on if does_work else ''}") from None


def _put_in_words(error: typer.BadParameter) -> None:
    """What is wrong with an option, in the words that a job file's errors have."""
    from pydantic import ValidationError

    from dlogp_ray.config.explaining import in_words, shown

    if isinstance(error.__cause__, ValidationError):
        (problem,) = error.__cause__.errors()
        words, came = in_words(problem), repr(problem["input"])
        error.message = words if came in words else f"{words} (got {shown(problem['input'])})"


app = typer.Typer(
    cls=_Commands,
    help="Score model generations with a base policy and its RL-tuned versions; query the tables.",
    epilog=f"Exit codes: {'; '.join(_MEANINGS.values())}.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"dlogp {version('dlogp_ray')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


def conclude(
    result: "AnyResult",
    print_result: "Callable[[AnyResult, Console], object]",
    *,
    as_json: bool,
) -> None:
    """Print how a job ended.

    Ray is ended before that: what it has to say of processes that died, it prints.
    """
    from dlogp_ray.analysis.printing import for_people, for_programs

    shutdown()
    print_result(result, for_people(as_json=as_json))
    for_programs(result.as_json(), as_json=as_json)


def main() -> None:
    """Run the command line; every expected error is one message and its exit code."""
    try:
        app(prog_name="dlogp")
    except DlogpError as error:
        from dlogp_ray.events import LOG, say

        if LOG.handlers:  # whoever reads the log learns how it ended
            say("ended", logging.ERROR, cause=str(error), exit_code=int(error.exit_code))
        else:
            typer.echo(visible(f"dlogp: {error}"), err=True)
        sys.exit(int(error.exit_code))
