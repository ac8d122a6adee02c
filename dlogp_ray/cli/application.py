"""What commands are added to, and how any of them ends."""

import json
import logging
import sys
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer

from dlogp_ray.errors import DlogpError
from dlogp_ray.pipelines.run.session import shutdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console


class Result(Protocol):
    """How a job ended."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""


AnyResult = TypeVar("AnyResult", bound=Result)


EXIT_CODES = """Exit codes: 0 all done; 2 refused before work began; 3 rows were rejected or answers
not graded (more than max_rejected), or sample ids occur twice; 4 units failed, the others are done;
5 the run exists and was made from something else, or the store is not fit; 6 an object of the run
is missing, damaged or changed; 130 and 143 stopped, the same command resumes."""

app = typer.Typer(
    help="Score model generations with a base policy and its RL-tuned versions; query the tables.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def conclude(result: "AnyResult", print_result: "Callable[[AnyResult, Console], object]") -> None:
    """Print how a job ended, for people, and as JSON in the last line.

    Ray is ended before that: what it has to say of processes that died, it prints.
    """
    from rich.console import Console

    shutdown()
    print_result(result, Console())
    typer.echo(json.dumps(result.as_json()))


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
