"""Statistics of a run by policy, generator and whatever columns one names; they add up.

Only rows whose status is ok count; a policy by itself has no Δlog p, and is left out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from dlogp_ray.analysis.sparsity.examples import Examples
from dlogp_ray.analysis.sparsity.statistics import COLUMNS, Statistics
from dlogp_ray.analysis.sparsity.tokens import Tokens
from dlogp_ray.analysis.sparsity.training import Training, trainings
from dlogp_ray.errors import Refused
from dlogp_ray.status import Status

SPLIT = ("policy", "generator")
"""What every figure is split by."""
MOST_GROUPS = 100
"""What is kept of each takes 2 to 10 MB, wherever sums meet."""
SHOWN = ("rank_base", "correct", "reward", "prompt")
"""What the report shows beside that, where it is there."""


@dataclass(frozen=True)
class Group:
    """Whose tokens.

    Attributes:
        policy: The policy that is compared with the base.
        generator: Of the text; None where the corpus names none.
        by: Column -> its value, as text.
        step: Training step of the policy, where the run's config says it.
    """

    policy: str
    generator: str | None
    by: tuple[tuple[str, str | None], ...] = ()
    step: int | None = None

    def __str__(self) -> str:
        """For people."""
        by = "".join(f", {name} {value}" for name, value in self.by)
        return f"{self.generator or 'unnamed'}'s text under {self.policy}{by}"


@dataclass(frozen=True)
class Grouped:
    """Statistics by group.

    Attributes:
        groups: What each has.
        named: All groups of rows, those without a token that counts too.
        rows: Rows that were looked at.
        alone: Rows of policies without a base, which have no statistics here.
        training: Generator -> how log p moves over checkpoints, where there are several.
        examples: Rows for the report.
    """

    groups: Mapping[Group, Statistics] = field(default_factory=dict)
    named: frozenset[Group] = frozenset()
    rows: int = 0
    alone: int = 0
    training: Mapping[str | None, Training] = field(default_factory=dict)
    examples: Examples = field(default_factory=Examples)

    def __add__(self, other: Self) -> Self:
        """Of both.

        Raises:
            Refused: They are too many.
        """
        named = self.named | other.named
        _check_count(len(named))
        return type(self)(
            _added(self.groups, other.groups),
            named,
            self.rows + other.rows,
            self.alone + other.alone,
            _added(self.training, other.training),
            self.examples + other.examples,
        )

    @property
    def empty(self) -> list[Group]:
        """Groups without a token that counts."""
        return sorted(self.named - self.groups.keys(), key=str)

    def overall(self) -> Self:
        """By policy and generator alone."""
        groups: dict[Group, Statistics] = {}
        for group, statistics in self.groups.items():
            key = replace(group, by=())
            groups[key] = groups[key] + statistics if key in groups else statistics
        return replace(self, groups=groups)

    @classmethod
    def merge(cls, parts: Iterable[Self]) -> Self:
        """Of all parts."""
        return sum(parts, start=cls())


def columns_needed(by: Sequence[str], there: Iterable[str]) -> list[str]:
    """Columns of the scores table that ``grouped`` reads, of those that are there."""
    needed = dict.fromkeys(
        ["status", "sample_id", "step", *SPLIT, *by, *SHOWN, "response_mask", *COLUMNS]
    )
    return [name for name in there if name in needed]


def grouped(rows: pa.Table, by: Sequence[str], floors: Mapping[str, float]) -> Grouped:
    """The statistics of some rows.

    Args:
        rows: Of the scores table, with ``columns_needed``.
        by: Columns to split by, besides policy and generator.
        floors: As ``Statistics.of``.

    Raises:
        Refused: There are too many groups.
    """
    scored = rows.filter(pc.equal(rows["status"], Status.OK))
    paired = scored.filter(pc.is_valid(scored["delta_logp"]))
    rejected = rows.filter(pc.not_equal(rows["status"], Status.OK))
    groups = {}
    named = {group for group, _ in _split(rejected, by)}
    for group, members in _split(paired, by):
        named.add(group)
        tokens = Tokens.of(members)
        if len(tokens):
            groups[group] = Statistics.of(tokens, floors)
    return Grouped(
        groups,
        named=frozenset(named),
        rows=len(rows),
        alone=len(scored) - len(paired),
        training=trainings(paired, floors.get("delta_logp", 0.0)),
        examples=Examples.of(paired),
    )


def _split(rows: pa.Table, by: Sequence[str]) -> Iterator[tuple[Group, pa.Table]]:
    """The rows of each group."""
    for name in by:  # as text: NaN is a group of its own too
        index = rows.column_names.index(name)
        rows = rows.set_column(index, name, rows[name].cast(pa.string()))
    keys = rows.group_by([*SPLIT, "step", *by], use_threads=False).aggregate([]).to_pylist()
    _check_count(len(keys))
    for key in keys:
        members = rows
        for name, value in key.items():
            column = members[name]
            members = members.filter(
                pc.is_null(column) if value is None else pc.equal(column, value)
            )
        split = tuple((name, key[name]) for name in by)
        yield Group(key["policy"], key["generator"], split, key["step"]), members


def _added(mine: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Those of one side alone stay as they are."""
    both = {key: mine[key] + theirs[key] for key in mine if key in theirs}
    return {**mine, **theirs, **both}


def _check_count(groups: int) -> None:
    if groups > MOST_GROUPS:
        raise Refused(
            f"expected at most {MOST_GROUPS} groups (policies times generators times values of the "
            f"columns to split by), got {groups} and perhaps more; split by fewer, or ask in SQL: "
            "`dlogp query`"
        )
