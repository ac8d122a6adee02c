"""What is in a part of the generations table: counts that add up, in each object's footer."""

from collections.abc import Iterable
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from dlogp_ray.status import count_rejected


class AnswerCounts(BaseModel):
    """Of one intervention's answers.

    Attributes:
        answers: How many.
        graded: Those of which the verifier said whether they are right.
        correct: Those that are.
        tokens: Of all answers.
        fired: Tokens at which the rule fired.
        changed: Tokens that came out as others.
    """

    answers: int = 0
    graded: int = 0
    correct: int = 0
    tokens: int = 0
    fired: int = 0
    changed: int = 0

    def __add__(self, other: Self) -> Self:
        """Of both."""
        mine, theirs = self.model_dump(), other.model_dump()
        return type(self)(**{name: value + theirs[name] for name, value in mine.items()})


class AnswerSummary(BaseModel):
    """Of some objects.

    Attributes:
        status: Rows by status.
        policies: Label of the intervention -> its counts.
    """

    status: dict[str, int] = {}
    policies: dict[str, AnswerCounts] = {}

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(counts.tokens for counts in self.policies.values())

    @property
    def rows(self) -> int:
        """All answers."""
        return sum(self.status.values())

    @property
    def rejected(self) -> int:
        """Those that nobody could grade."""
        return count_rejected(self.status)

    @classmethod
    def merge(cls, parts: Iterable[Self]) -> Self:
        """Of all parts, in any order."""
        whole = cls()
        for part in parts:
            for status, count in part.status.items():
                whole.status[status] = whole.status.get(status, 0) + count
            for policy, counts in part.policies.items():
                whole.policies[policy] = whole.policies.get(policy, AnswerCounts()) + counts
        return whole


def summarise_answers(rows: pa.Table) -> AnswerSummary:
    """Count the rows of an object."""
    table = pa.table(
        {
            "policy": rows["policy"],
            "answers": pa.array([1] * len(rows), pa.int64()),
            "graded": pc.cast(pc.is_valid(rows["correct"]), pa.int64()),
            "correct": pc.cast(pc.fill_null(rows["correct"], False), pa.int64()),
            "tokens": pc.cast(rows["length"], pa.int64()),
            "fired": _true_of_each(rows["fired"]),
            "changed": _true_of_each(rows["changed"]),
        }
    )
    names = list(AnswerCounts.model_fields)
    sums = table.group_by("policy").aggregate([(name, "sum") for name in names]).to_pylist()
    status = pc.value_counts(rows["status"]).to_pylist()
    return AnswerSummary(
        status={count["values"]: count["counts"] for count in status},
        policies={
            row["policy"]: AnswerCounts(**{name: row[f"{name}_sum"] for name in names})
            for row in sorted(sums, key=lambda row: str(row["policy"]))
        },
    )


def _true_of_each(lists: pa.ChunkedArray) -> pa.Array:
    """How many values of each list are true."""
    array = lists.combine_chunks()
    running = pc.cumulative_sum(pc.cast(array.flatten(), pa.int64()))
    total = pa.concat_arrays([pa.array([0], pa.int64()), running])
    ends = pc.cumulative_sum(pc.cast(pc.list_value_length(array), pa.int64()))
    starts = pc.subtract(ends, pc.cast(pc.list_value_length(array), pa.int64()))
    return pc.subtract(total.take(ends), total.take(starts))
