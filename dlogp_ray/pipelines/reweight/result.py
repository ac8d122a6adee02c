"""How a reweight job ended."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.analysis.weights import schemes_line, weights_facts
from dlogp_ray.errors import Damaged, ExitCode, Refused, StoreFailed
from dlogp_ray.pipelines.run.clock import Clock
from dlogp_ray.pipelines.run.make_run import Made
from dlogp_ray.tables.info import ReweightInfo
from dlogp_ray.tables.weights import WeightsSummary
from dlogp_ray.weights.rows import Weighing


@dataclass(frozen=True)
class ReweightResult:
    """The end of a reweight job.

    Attributes:
        table: Address of the weights table, as ``load_weights`` takes it.
        run: The scores run that it was made from.
        policy: π_old.
        schemes: With all parameters.
        units: Objects of the table.
        units_created: Those that this call has made.
        summary: Rows, a row a sample, and their weights.
        threshold: The entropy from which ``entropy_top`` keeps a token.
        seconds: Wall-clock time of this call.
        spent: Of it, by what it went into.
    """

    table: str
    run: str
    policy: str
    schemes: list[dict[str, Any]]
    units: int
    units_created: int
    summary: WeightsSummary
    threshold: float | None
    seconds: float
    spent: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """All fields, for the last line of output."""
        fields: dict[str, Any] = asdict(self)
        del fields["summary"]
        counts = self.summary.model_dump()
        return fields | counts | {"rows": self.summary.rows, "mean": self.summary.mean}


def summarise_weights(made: Made, weighing: Weighing, clock: Clock) -> ReweightResult:
    """What is in the table.

    Raises:
        Damaged: An object of the scores could not be weighed: it can't be read.
        Refused: Or a scheme can't be applied to it.
        StoreFailed: Or another unit could not be done; what is there stays.
    """
    table = made.run
    if not table.sealed:
        failed = sorted(
            made.failed.values(), key=lambda failure: (-failure.code, failure.unit.index)
        )
        error = {ExitCode.DAMAGED: Damaged, ExitCode.REFUSED: Refused}.get(
            ExitCode(failed[0].code) if failed else ExitCode.FAILED_UNITS, StoreFailed
        )
        causes = "; ".join(f"{failure.unit.name}: {failure.cause}" for failure in failed[:5])
        raise error(
            f"weights table {table.uri} is not whole ({len(table.committed())} of {table.planned} "
            f"objects): {causes or made.outcome.ended}. The same command makes the rest"
        )
    info = table.info_of(ReweightInfo)
    footers = table.footers(table.entries())
    return ReweightResult(
        table=table.uri,
        run=info.run,
        policy=weighing.policy,
        schemes=[scheme.model_dump() for scheme in weighing.schemes],
        units=table.planned,
        units_created=made.outcome.created,
        summary=WeightsSummary.merge(
            WeightsSummary.model_validate(footer.said.summary) for _, footer in footers
        ),
        threshold=info.whole.threshold,
        seconds=clock.seconds,
        spent=clock.spent,
    )


def print_reweight(result: ReweightResult, console: Console) -> None:
    """What came out, for people."""
    console.print(f"{schemes_line(result.schemes)}; π_old is {result.policy}", soft_wrap=True)
    if result.threshold is not None:
        console.print(f"entropy from {result.threshold:.4g} nats on: of all tokens of the table")
    print_whole(weights_facts(result.summary), console)
    console.print(f"weights table: {result.table}", soft_wrap=True)
