"""The runs in a folder or bucket, a line each."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fsspec import AbstractFileSystem
from rich.console import Console

from dlogp_ray import store
from dlogp_ray.analysis.printing import print_rows
from dlogp_ray.errors import DlogpError
from dlogp_ray.tables.object_names import RECORD
from dlogp_ray.tables.run import Run, open_run


@dataclass(frozen=True)
class RunLine:
    """A run at a glance; of one that can't be read, the address and the reason.

    Attributes:
        run: Its address.
        job: That made it.
        created: When, in UTC.
        policies: By name.
        tokens: Response tokens, once it is sealed.
        rows: Rows of its table, once it is sealed.
        units: Planned.
        units_done: Those whose object is there.
        sealed: Whether it is complete and closed.
        headline: Of its analysis ``all``, if it has one: mean Δlog p and the share of tokens that
            it moves by more than half a nat, for each policy on its own text.
        problem: Why it can't be read.
    """

    run: str
    job: str = ""
    created: str = ""
    policies: tuple[str, ...] = ()
    tokens: int | None = None
    rows: int | None = None
    units: int | None = None
    units_done: int | None = None
    sealed: bool = False
    headline: str = ""
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def runs_below(uri: str) -> Iterator[RunLine]:
    """The runs in a folder or bucket and in the folders in it, by address.

    Raises:
        Refused: It is no address of a store.
    """
    uri = store.absolute(uri)
    filesystem, path = store.open_store(uri)
    with store.refusals(uri):
        found = list(_found(filesystem, str(path)))
    for name in found:
        yield _line(f"{uri}{name.removeprefix(str(path))}")


def _found(filesystem: AbstractFileSystem, path: str) -> Iterator[str]:
    """Folders of runs; what is in one, thousands of objects perhaps, is not listed."""
    for folder in _folders(filesystem, path):
        if filesystem.exists(f"{folder}/{RECORD}"):
            yield folder
        else:
            inner = _folders(filesystem, folder)
            yield from (name for name in inner if filesystem.exists(f"{name}/{RECORD}"))


def _folders(filesystem: AbstractFileSystem, path: str) -> list[str]:
    if not filesystem.exists(path):
        return []
    entries = filesystem.ls(path, detail=True)
    return sorted(str(one["name"]) for one in entries if one["type"] == "directory")


def _line(uri: str) -> RunLine:
    try:
        run = open_run(uri)
        config = run.info.config
        totals = run.seal if run.sealed else {}
        return RunLine(
            run=uri,
            job=run.info.job,
            created=run.info.created,
            policies=tuple(config.policies),
            tokens=totals.get("tokens"),
            rows=totals.get("rows"),
            units=run.planned,
            units_done=totals["units"] if run.sealed else len(run.entries()),
            sealed=run.sealed,
            headline=_headline(run),
        )
    except (DlogpError, OSError, KeyError) as error:
        return RunLine(run=uri, problem=str(error).partition("\n")[0])


def _headline(run: Run) -> str:
    if "analyses" not in run.kind.beside or "all" not in run.analyses():
        return ""
    figures = {
        (row["policy"], row["generator"], row["statistic"], row["figure"], row["x"]): row["value"]
        for row in run.figures("all").to_pylist()
    }
    told = []
    for policy in run.info.config.policies:
        mean = figures.get((policy, policy, "delta_logp", "mean", None))
        moved = figures.get((policy, policy, "abs_delta_logp", "share_above", 0.5))
        if mean is not None and moved is not None:
            told.append(f"{policy}: mean Δ {mean:+.4f}, |Δ| > 0.5 {moved:.2%}")
    return "; ".join(told)


def print_runs(lines: list[RunLine], console: Console) -> None:
    """A line a run."""
    rows = [["run", "job", "policies", "created", "done", "tokens", "headline"]]
    for line in lines:
        if line.problem:
            rows.append([line.run, "", "", "", "", "", line.problem])
            continue
        share = f"{line.units_done:,} of {line.units:,} units"
        rows.append(
            [
                line.run,
                line.job,
                ", ".join(line.policies),
                line.created,
                "sealed" if line.sealed else share,
                "" if line.tokens is None else f"{line.tokens:,}",
                line.headline,
            ]
        )
    if len(rows) == 1:
        console.print("there are no runs", highlight=False)
    else:
        print_rows(rows, console, names=5)
