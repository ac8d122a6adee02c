"""What a format is: how a record that some program wrote becomes rows under the standard names."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dlogp_ray.config.corpus import CORPUS_COLUMNS
from dlogp_ray.corpus.paths import value_at
from dlogp_ray.errors import RowRejected
from dlogp_ray.status import Status

Record = Mapping[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """One layout of rollouts on disk.

    Attributes:
        what: It is, for people.
        holds: What of a row is in it, for people.
        keys: Names that every record has; they tell the format from others.
        rows: What becomes of a record, and the path of its file: a row, or several. What it has
            besides may be carried.
        lossy: What can't be had back from such files, and what to set in the program that wrote
            them; "" where nothing is lost.
        rendered: Whether special tokens stand in its prompts' text.
    """

    what: str
    holds: str
    keys: frozenset[str]
    rows: Callable[[Record, str], Iterable[Row]]
    lossy: str = ""
    rendered: bool = field(default=False, kw_only=True)

    def made(self, record: Record, file: str) -> list[Row]:
        """The rows of a record, and what it has besides under other names.

        Raises:
            RowRejected: It is not of this format.
        """
        if missing := sorted(self.keys - record.keys()):
            raise RowRejected(
                Status.MISSING_COLUMN, f"it is no record of {self.what}: there is no {missing[0]!r}"
            )
        besides = {name: value for name, value in record.items() if name not in CORPUS_COLUMNS}
        return [besides | row for row in self.rows(record, file)]


def the_list(record: Record, path: str) -> list[Any]:
    """A list that a record has to have.

    Raises:
        RowRejected: It has none there.
    """
    value = value_at(record, path)
    if not isinstance(value, list):
        came = "nothing" if value is None else type(value).__name__
        raise RowRejected(Status.WRONG_TYPE, f"{path!r}: expected a list, got {came}")
    return value


def lists(record: Record, *paths: str) -> list[tuple[Any, ...]]:
    """The elements of lists of one length, side by side; of a list that is not there, None.

    Raises:
        RowRejected: The first is missing, or they have other lengths.
    """
    first = the_list(record, paths[0])
    others = [value_at(record, path) for path in paths[1:]]
    for path, values in zip(paths[1:], others, strict=True):
        if values is not None and (not isinstance(values, list) or len(values) != len(first)):
            raise RowRejected(
                Status.WRONG_TYPE,
                f"{paths[0]!r} has {len(first)} elements; expected a list of as many at {path!r}",
            )
    columns = [first, *([None] * len(first) if v is None else v for v in others)]
    return list(zip(*columns, strict=True))


def cut_by_mask(ids: list[Any], mask: list[Any], logps: list[Any] | None = None) -> Row:
    """Prompt and response of one list: the response begins with the first generated token.

    Args:
        ids: Of both.
        mask: As long: what is 0 behind the first 1 is masked.
        logps: As long, where the sampler's log-probabilities are there.

    Raises:
        RowRejected: They have other lengths.
    """
    for name, values in (("mask", mask), ("log-probabilities", logps)):
        if values is not None and len(values) != len(ids):
            raise RowRejected(
                Status.MASK_LENGTH, f"the {name} have {len(values)} values for {len(ids)} ids"
            )
    begin = next((at for at, value in enumerate(mask) if value), len(ids))
    row: Row = {"prompt_ids": ids[:begin], "response_ids": ids[begin:]}
    row["response_mask"] = [1 if value else 0 for value in mask[begin:]]
    if logps is not None:
        row["rollout_logp"] = logps[begin:]
    return row
