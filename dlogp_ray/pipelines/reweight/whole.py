"""What schemes need of all rows: an exact quantile of entropies, sums by group."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

from dlogp_ray.config.schemes import EntropyTop
from dlogp_ray.pipelines.reweight.stages import rows_of
from dlogp_ray.pipelines.run.for_tables import added_up
from dlogp_ray.tables.objects import TableObject
from dlogp_ray.weights.rows import Weighing, first_pass
from dlogp_ray.weights.whole import Counts, GroupSums, quantile, quantile_upper

_GROUPS = {"log_ppl": "groups", "reward": "advantages"}
"""Sums by group, of which every worker needs some -> what a scheme needs them for."""


@dataclass(frozen=True)
class OfAllRows:
    """What was found.

    Attributes:
        threshold: The entropy from which ``entropy_top`` keeps a token.
        groups: What of -> its sums by group.
    """

    threshold: float | None
    groups: dict[str, GroupSums]


def look_at_all(
    objects: Sequence[TableObject],
    weighing: Weighing,
    where: Literal["here", "ray"],
    *,
    progress: bool,
) -> OfAllRows:
    """In one pass, or two for an entropy quantile; none where no scheme needs it.

    Raises:
        Damaged: An object can't be read.
        Refused: A text has no reward where a scheme looks at rewards.
    """
    wanted = {need for scheme in weighing.schemes for need in scheme.needs}
    top = next((scheme for scheme in weighing.schemes if isinstance(scheme, EntropyTop)), None)
    if not top and not wanted & {*_GROUPS.values()}:
        return OfAllRows(None, {})
    look = partial(_first_look, weighing=weighing)
    first = added_up(objects, look, _First.merge, where, progress=progress)
    threshold = None
    if top:
        threshold = _threshold(objects, weighing, top, first.counts, where, progress=progress)
    groups = {name: getattr(first, name) for name, need in _GROUPS.items() if need in wanted}
    return OfAllRows(threshold, groups)


@dataclass(frozen=True)
class _First:
    counts: Counts
    log_ppl: GroupSums
    reward: GroupSums

    @classmethod
    def merge(cls, parts: Iterable[Self]) -> Self:
        firsts = list(parts)
        return cls(
            Counts.merge([first.counts for first in firsts]),
            GroupSums.merge(first.log_ppl for first in firsts),
            GroupSums.merge(first.reward for first in firsts),
        )


def _first_look(scores: TableObject, *, weighing: Weighing) -> _First:
    return _First(*first_pass(rows_of(scores, weighing), weighing))


def _second_look(scores: TableObject, *, weighing: Weighing, upper: int) -> Counts:
    return Counts.of(rows_of(scores, weighing).entropies(), upper)


def _added(parts: Sequence[Counts]) -> Counts:
    return Counts.merge(parts)


def _threshold(
    objects: Sequence[TableObject],
    weighing: Weighing,
    scheme: EntropyTop,
    counts: Counts,
    where: Literal["here", "ray"],
    *,
    progress: bool,
) -> float:
    if not len(counts):
        return 0.0
    upper, rank = quantile_upper(counts, scheme.rho)
    look = partial(_second_look, weighing=weighing, upper=upper)
    return quantile(upper, added_up(objects, look, _added, where, progress=progress), rank)
