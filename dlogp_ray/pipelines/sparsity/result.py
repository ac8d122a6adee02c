"""How a sparsity job ended."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from dlogp_ray import store
from dlogp_ray.analysis.printing import print_rows
from dlogp_ray.analysis.sparsity.headlines import headline_rows
from dlogp_ray.analysis.sparsity.llama_cpp import llama_cpp_lines
from dlogp_ray.tables.derived import ANALYSIS
from dlogp_ray.tables.run import open_run

REPORT = "report.html"


@dataclass(frozen=True)
class SparsityResult:
    """The end of a sparsity job.

    Attributes:
        run: Address of the run.
        folder: Where the tables are.
        sealed: Whether the run is complete.
        units: Work units of the run.
        units_read: Those whose object was there.
        groups: Policies, generators and what else the tokens were split by.
        samples: Rows with statistics.
        tokens: Their tokens that count.
        alone: Rows of policies that are compared with none.
        unresolved_nats: |Δlog p| up to here is unresolved; None where no noise was measured.
        noise_lacks: What that leaves out, for people; None where it leaves out nothing.
        single: Groups with one sample, whose figures have no standard error.
        empty: Groups of whose rows none has a token that counts, and which have no figures.
        tables: Rows of each table.
        seconds: Wall-clock time of this call.
        spent: Of it, by what it went into.
    """

    run: str
    folder: str
    sealed: bool
    units: int
    units_read: int
    groups: int
    samples: int
    tokens: int
    alone: int
    unresolved_nats: float | None
    noise_lacks: str | None
    single: list[str]
    empty: list[str]
    tables: dict[str, int]
    seconds: float
    spent: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """All fields, for the last line of output."""
        return asdict(self)


def print_sparsity(result: SparsityResult, console: Console, *, llama_cpp: bool = False) -> None:
    """Print the headline figures for people; on demand in the words of llama.cpp as well."""
    if not result.sealed:
        console.print(
            f"the run is not sealed: this covers {result.units_read} of {result.units} units"
        )
    config = json.loads(store.read(f"{result.folder}/{ANALYSIS}"))["config"]
    figures = open_run(result.run).figures(config["name"])
    by = config["by"]
    print_rows(headline_rows(figures, by), console, names=2 + len(by))
    if llama_cpp:
        console.print()
        for line in llama_cpp_lines(figures, by):
            console.print(line, highlight=False, soft_wrap=True)
    if result.unresolved_nats is None:
        console.print("the run has no noise floor: raised and lowered are all that is not 0")
    else:
        console.print(
            f"raised and lowered: by more than {_floor(result)}, the run's noise floor",
            soft_wrap=True,
        )
    for name in result.single:
        console.print(f"one sample, so no standard errors: {name}", soft_wrap=True)
    for name in result.empty:
        console.print(f"no token that counts, so no figures: {name}", soft_wrap=True)
    console.print(f"report and tables: {result.folder}/{REPORT}", soft_wrap=True)


def _floor(result: SparsityResult) -> str:
    lacks = f" ({result.noise_lacks})" if result.noise_lacks else ""
    return f"{result.unresolved_nats:.2g} nats{lacks}"
