"""Rows with two responses, as preference data has them: each becomes two samples."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dlogp_ray.corpus.reading import RawRow
from dlogp_ray.errors import RowRejected

ROLES = ("chosen", "rejected")


def split_pairs(rows: Iterable[RawRow], theirs: Callable[[str], str]) -> Iterator[RawRow]:
    """The samples of rows with two responses, ``<sample_id>/chosen`` and ``<sample_id>/rejected``.

    A row has ``chosen_ids`` and ``rejected_ids`` in place of ``response_ids``, or ``chosen`` and
    ``rejected`` in place of ``response``; all else stands in both samples. What is missing is
    found where rows are checked.

    Args:
        rows: Raw rows with their offsets.
        theirs: What the corpus calls a standard column.
    """
    for offset, raw in rows:
        if isinstance(raw, RowRejected):
            yield offset, raw
            continue
        for role in ROLES:
            yield offset, _sample(raw, role, theirs)


def _sample(raw: dict[str, Any], role: str, theirs: Callable[[str], str]) -> dict[str, Any]:
    name = theirs("sample_id")
    sample = dict(raw)
    if isinstance(raw.get(name), str | int):
        sample[name] = f"{raw[name]}/{role}"
    sample[theirs("response_ids")] = raw.get(theirs(f"{role}_ids"))
    sample[theirs("response")] = raw.get(theirs(role))
    sample[theirs("response_mask")] = None
    return sample
