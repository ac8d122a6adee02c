"""What is in a run, at a glance: how far it is, what it says, what was rejected and why."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlogp_ray.amounts import amount
from dlogp_ray.analysis.answers import AnswerCounts, AnswerSummary
from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.analysis.summary import DELTA_THRESHOLDS, Summary
from dlogp_ray.analysis.weights import schemes_line, weights_facts
from dlogp_ray.tables.calls import Call, read_calls, spent_in_words
from dlogp_ray.tables.info import InterveneInfo, ReweightInfo, RunInfo
from dlogp_ray.tables.kinds import GENERATIONS, SCORES, WEIGHTS, Kind
from dlogp_ray.tables.noise import NoiseFloor
from dlogp_ray.tables.places import place
from dlogp_ray.tables.run import Run
from dlogp_ray.tables.special_tokens import special_token_rows
from dlogp_ray.tables.weights import WeightsSummary

_EXAMPLES = 3
_CALLS = 3
_SUMMARIES: Mapping[Kind, type[Summary | AnswerSummary | WeightsSummary]] = {
    SCORES: Summary,
    GENERATIONS: AnswerSummary,
    WEIGHTS: WeightsSummary,
}
_LOST = {Summary: "rejected", AnswerSummary: "not graded", WeightsSummary: "without weights"}


@dataclass(frozen=True)
class Overview:
    """A run at a glance.

    Attributes:
        run: Its address.
        info: Its record.
        sealed: Whether it is closed.
        units: Planned work units.
        units_done: Those whose object is there.
        noise: The floor; None where it was not measured.
        summary: Of all objects; an intervene job's is of its answers, a weights table's of weights.
        rejected: Up to three examples a status: status, count, sample_id, error, and ``source``,
            which is file and place, or the problem.
        failures: Units that could not be done, with cause and attempts.
        calls: That made it, from the first on: where, and what they spent their time on.
    """

    run: str
    info: RunInfo
    sealed: bool
    units: int
    units_done: int
    noise: NoiseFloor | None
    summary: Summary | AnswerSummary | WeightsSummary
    rejected: list[dict[str, Any]]
    failures: dict[str, dict[str, Any]]
    calls: Sequence[Call] = ()

    @property
    def special_tokens(self) -> dict[str, int]:
        """Rows of the corpus, or problems, by what is special about their text."""
        if isinstance(self.summary, Summary):
            return self.summary.special_tokens
        return self.info.special_tokens if isinstance(self.info, InterveneInfo) else {}

    def as_json(self) -> dict[str, Any]:
        """All of it as one document, without the histograms."""
        noise = self.noise and self.noise.model_dump()
        fields = asdict(self) | {
            "info": self.info.as_json(),
            "noise": noise,
            "summary": self.summary.model_dump(),
            "calls": [call.model_dump() for call in self.calls],
        }
        for generators in fields["summary"].get("groups", {}).values():
            for group in generators.values():
                del group["delta_histogram"]
        return fields


def overview(run: Run) -> Overview:
    """Read the footers of all objects, and some of the rejected rows."""
    committed = run.entries()
    footers = run.footers(committed)
    model: Any = _SUMMARIES[run.kind]
    summary: Summary | AnswerSummary | WeightsSummary = model.merge(
        model.model_validate(footer.said.summary) for _, footer in footers
    )
    return Overview(
        run=run.uri,
        info=run.info,
        sealed=run.sealed,
        units=run.planned,
        units_done=len(committed),
        noise=run.noise,
        summary=summary,
        rejected=_rejected(run) if summary.rejected else [],
        failures=run.failures(),
        calls=read_calls(run.uri),
    )


def _rejected(run: Run) -> list[dict[str, Any]]:
    placed = run.kind is SCORES
    order = "source_file, source_offset" if placed else "sample_id"
    source = "source_file, source_offset" if placed else "group_id AS source"
    rows = run.sql(
        f"""
        WITH first_of_each AS (
            SELECT *, count(*) OVER (PARTITION BY status) AS count FROM rejected
            QUALIFY row_number() OVER (PARTITION BY status, error ORDER BY {order}) = 1
        )
        SELECT status, count, sample_id, {source}, error FROM first_of_each
        QUALIFY row_number() OVER (PARTITION BY status ORDER BY {order}) <= {_EXAMPLES}
        ORDER BY status, {order}
        """
    )
    reasons: list[dict[str, Any]] = rows.to_arrow_table().to_pylist()
    for row in reasons if placed else ():
        row["source"] = place(row.pop("source_file"), row.pop("source_offset"))
    return reasons


def print_overview(seen: Overview, console: Console) -> None:
    """Print it for people."""
    share = f"{seen.units_done} of {seen.units} units ({seen.units_done / seen.units:.0%})"
    if not seen.sealed and seen.units_done == seen.units:
        share += ": all are there, and the command that began the run seals it"
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_row("run", f"{seen.run} ({'sealed' if seen.sealed else 'not sealed'})")
    facts.add_row("created", seen.info.created)
    for name, value in _made_from(seen):
        facts.add_row(name, value)
    lost = _LOST[type(seen.summary)]
    facts.add_row("progress", share)
    facts.add_row("rows", f"{seen.summary.rows:,}, {seen.summary.rejected:,} of them {lost}")
    if seen.noise:
        facts.add_row(*seen.noise.as_row())
    for heading, fact in special_token_rows(seen.special_tokens):
        facts.add_row(heading, fact)
    if len(seen.calls) > _CALLS:
        facts.add_row("spent", f"by {amount(len(seen.calls), 'call')}; the last of them:")
    for call in seen.calls[-_CALLS:]:
        facts.add_row("spent", _spent(call))
    print_whole(facts, console)
    if isinstance(seen.summary, AnswerSummary):
        console.print()
        print_whole(_answers(seen.summary, seen.info.compared), console)
    elif isinstance(seen.summary, WeightsSummary):
        print_whole(weights_facts(seen.summary), console)
    elif seen.summary.groups:
        console.print()
        print_whole(_groups(seen.summary), console)
    if seen.rejected:
        console.print(f"\n{lost} (of each kind up to three)")
    for row in seen.rejected:
        name = row["sample_id"] or "no sample_id"
        where = f" at {row['source']}" if row["source"] else ""
        line = f"  {row['status']} ({row['count']:,}): {name}{where}: {row['error']}"
        console.print(escape(line), highlight=False, soft_wrap=True)
    for unit, record in seen.failures.items():
        line = f"failed {unit} after {amount(record['attempts'], 'attempt')}: {record['cause']}"
        console.print(escape(line), highlight=False, soft_wrap=True)


def _spent(call: Call) -> str:
    where = "through Ray" if call.run_on == "ray" else f"in process {call.process} on {call.host}"
    if call.ended or call.stopped:
        units = f"{amount(call.units_created, 'unit')} {where}"
        stopped = f", stopped by {call.stopped}" if call.stopped else ""
        return f"{units}{stopped}: {spent_in_words(sum(call.spent.values()), call.spent)}"
    state = "under way" if call.alive else "not ended"
    died = f", with {', '.join(call.under_way)} begun" if call.under_way else ""
    return f"{where}: {state}{died}"


def _made_from(seen: Overview) -> list[tuple[str, str]]:
    """What the table was made from: a heading and its fact, a line each."""
    info, config = seen.info, seen.info.config
    if isinstance(info, ReweightInfo):
        return [
            ("scores", info.run),
            ("schemes", schemes_line(info.fingerprint["schemes"])),
            ("π_old", info.policy),
        ]
    corpus = [entry if isinstance(entry, str) else entry.path for entry in config.corpus]
    facts = [
        (name, ", ".join(inputs))
        for name, inputs in (("problems", config.problems), ("corpus", corpus))
        if inputs
    ]
    for name, source in config.policies.items():
        step = f", step {source.step}" if source.step is not None else ""
        facts.append((f"policy {name}", f"{source.path or source.adapter}{step}"))
    return facts


def _answers(summary: AnswerSummary, order: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("intervention")
    for heading in ("answers", "right", "fired", "changed", "tokens"):
        table.add_column(heading, justify="right")
    for label in order:
        counts = summary.policies.get(label, AnswerCounts())
        tokens = max(counts.tokens, 1)
        table.add_row(
            label,
            f"{counts.answers:,}",
            f"{counts.correct / counts.graded:.2%}" if counts.graded else "none graded",
            f"{counts.fired / tokens:.2%}",
            f"{counts.changed / tokens:.2%}",
            f"{counts.tokens / max(counts.answers, 1):.1f}",
        )
    return table


def _groups(summary: Summary) -> Table:
    shown = (0.1, 0.5, 1.0)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("policy", "text of"):
        table.add_column(heading)
    for heading in ("samples", "tokens", "mean Δ", *(f"|Δ| > {t:g}" for t in shown)):
        table.add_column(heading, justify="right")
    for policy, generators in summary.groups.items():
        for generator, group in generators.items():
            shares = [
                f"{group.delta_above[DELTA_THRESHOLDS.index(t)] / max(group.tokens, 1):.2%}"
                for t in shown
            ]
            mean = f"{group.delta_sum / max(group.tokens, 1):+.4f}"
            compared = sum(group.delta_histogram) > 0
            table.add_row(
                policy,
                generator or "unnamed",
                f"{group.samples:,}",
                f"{group.tokens:,}",
                *([mean, *shares] if compared else ["no base"] + [""] * len(shown)),
            )
    return table
