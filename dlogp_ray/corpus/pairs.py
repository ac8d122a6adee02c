"""Rows with two responses, as preference data has them: each becomes two samples."""

from collections.abc import Iterable, Iterator
from typing import Any

from dlogp_ray.corpus.reading import RawRow
from dlogp_ray.errors import RowRejected

ROLES = ("chosen", "rejected")


def split_pairs(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """The samples of rows with two responses, ``<sample_id>/chosen`` and ``<sample_id>/rejected``.

    A row has ``chosen_ids`` and ``rejected_ids`` in place of ``response_ids``, or ``chosen`` and
    ``rejected`` in place of ``response``; all else stands in both samples. What is missing is
    found where rows are checked.

    Args:
        rows: Under the standard names, with their offsets.
    """
    for offset, raw in rows:
        if isinstance(raw, RowRejected):
            yield offset, raw
            continue
        for role in ROLES:
            yield offset, _sample(raw, role)


def _sample(raw: dict[str, Any], role: str) -> dict[str, Any]:
    sample = raw | {
        "response_ids": raw.get(f"{role}_ids"),
        "response": raw.get(role),
        "response_mask": None,
    }
    if isinstance(raw.get("sample_id"), str | int):
        sample["sample_id"] = f"{raw['sample_id']}/{role}"
    return sample
