"""How the records of a corpus entry become rows under the standard names."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dlogp_ray.config.corpus import CORPUS_COLUMNS, CorpusEntry, Split
from dlogp_ray.config.prompts import Prompts
from dlogp_ray.corpus.formats import FORMATS
from dlogp_ray.corpus.formats.format import Format
from dlogp_ray.corpus.paths import ALL, roots, value_at, with_value
from dlogp_ray.corpus.reading import RawRow
from dlogp_ray.errors import RowRejected
from dlogp_ray.status import Status

if TYPE_CHECKING:
    from dlogp_ray.corpus.choosing import Condition

AUTO = "auto"
_PROMPTS = ("prompt_ids", "prompt", "messages")
_SPLIT = ("prompt_ids", "response_ids", "response_mask")


@dataclass(frozen=True)
class RowMap:
    """How rows are made of the records of a corpus entry.

    Attributes:
        entry: What the config says, completed.
        root: The folder below which the entry's files are, as their addresses begin.
    """

    entry: CorpusEntry
    root: str = ""

    def rows(self, records: Iterable[RawRow], file: str) -> Iterator[RawRow]:
        """The rows of each record that are meant, in its place.

        Args:
            records: As they stand in the file, with their offsets.
            file: Its address.
        """
        rows = self.all_rows(records, file)
        if (condition := self.condition) is not None:
            rows = condition.chosen(rows)
        if self.entry.sample is not None:
            from dlogp_ray.corpus.choosing import sampled

            rows = sampled(rows, self.entry.sample)
        return rows

    def all_rows(self, records: Iterable[RawRow], file: str) -> Iterator[RawRow]:
        """The rows of each record, those too that are not meant."""
        for offset, record in records:
            if isinstance(record, RowRejected):
                yield offset, record
                continue
            try:
                made = self._of(record, file, offset)
            except RowRejected as rejection:
                yield offset, rejection
            else:
                yield from ((offset, row) for row in made)

    @cached_property
    def _plain(self) -> bool:
        """Whether records are rows as they are; some may be left out."""
        plain = CorpusEntry(path=self.entry.path, where=self.entry.where, sample=self.entry.sample)
        return self.entry == plain

    @property
    def condition(self) -> "Condition | None":
        """Which rows are meant.

        Raises:
            Refused: As ``Condition``.
        """
        if self.entry.where is None:
            return None
        from dlogp_ray.corpus.choosing import Condition  # with DuckDB, which few need

        return Condition(self.entry.where)

    @property
    def form(self) -> Format | None:
        """The layout that the entry names."""
        return FORMATS[self.entry.format] if self.entry.format else None

    @property
    def prompts(self) -> Prompts:
        """How text becomes tokens: a format may say that its prompts are rendered."""
        if self.form and self.form.rendered and self.entry.prompt_format == "raw":
            return self.entry.model_copy(update={"prompt_format": "rendered"})
        return self.entry

    def label(self, name: str) -> str:
        """What the corpus calls a standard column, for errors."""
        split = self.entry.split
        if split is not None and name in _SPLIT:
            return split.mask or split.ids if name == "response_mask" else split.ids
        return self.entry.columns.get(name, name)

    @property
    def by_name(self) -> bool:
        """Whether every column is another one as a whole, by its name."""
        entry = self.entry
        paths = entry.columns.values()
        simple = all(roots(path) == {path} for path in paths)
        made = entry.format or entry.explode or entry.split or "conversation" in entry.columns
        return simple and not made

    def standard(self, names: Collection[str]) -> set[str]:
        """The columns of rows whose records have these names, where that is ``by_name``."""
        renamed = {name for name, theirs in self.entry.columns.items() if theirs in names}
        return (set(names) - set(self.entry.columns)) | renamed | set(self.entry.constants)

    def reads(self, carried: Iterable[str]) -> frozenset[str] | None:
        """The names at the top of a record that rows are made of; None for all."""
        entry = self.entry
        if entry.format is not None:
            return None
        paths = [*entry.columns.values(), *entry.explode]
        if entry.split is not None:
            paths += filter(None, entry.split.model_dump().values())
        if entry.where is not None:
            from dlogp_ray.corpus.choosing import columns_of

            paths += columns_of(entry.where)
        names = frozenset(CORPUS_COLUMNS).union(carried, *map(roots, paths))
        return None if ALL in names else names

    def name_of(self, file: str) -> str:
        """What ``sample_id: auto`` calls a file: its path below the entry, behind the generator."""
        return str(self._of_generator(file.removeprefix(self.root).lstrip("/")))

    def _of_generator(self, name: Any) -> Any:
        """Behind the generator, where it is a constant: base's and RL's are mostly called alike."""
        generator = self.entry.constants.get("generator")
        return name if generator is None else f"{generator}/{name}"

    def _of(self, record: dict[str, Any], file: str, offset: int) -> list[dict[str, Any]]:
        if self._plain and "conversation" not in record:
            return [record]
        entry, form = self.entry, self.form
        if form is not None:
            pairs = [(record, row) for row in form.made(record, self.name_of(file))]
        elif entry.explode:
            pairs = [(one, dict(one)) for one in _exploded(record, entry.explode)]
        else:
            pairs = [(record, dict(record))]
        several = len(pairs) > 1 or bool(entry.explode)
        return [
            self._row(one, row, f"{self.name_of(file)}:{offset}", f"/{n}" if several else "")
            for n, (one, row) in enumerate(pairs)
        ]

    def _row(
        self, record: dict[str, Any], row: dict[str, Any], place: str, number: str
    ) -> dict[str, Any]:
        """A row, of what stands in the record and what its format has made of it."""
        entry = self.entry
        mapped = {name: value_at(record, path) for name, path in entry.columns.items()}
        if entry.format is not None and mapped.keys() & set(_PROMPTS):
            row |= dict.fromkeys(_PROMPTS)  # the job says which of them is meant
        row |= mapped
        if entry.split is not None:
            row |= _split(record, entry.split)
        for name, value in entry.constants.items():
            if row.get(name) is None:
                row[name] = value
        if row.get("conversation") is not None and not any(map(row.get, (*_PROMPTS, "response"))):
            row |= _answered(row["conversation"], self.label("conversation"))
        if entry.sample_id == AUTO or (entry.format is not None and row.get("sample_id") is None):
            row["sample_id"] = f"{place}{number}"
        elif entry.format is not None and "sample_id" not in mapped:
            row["sample_id"] = self._of_generator(row["sample_id"])
        elif entry.explode and isinstance(row.get("sample_id"), str | int):
            row["sample_id"] = f"{row['sample_id']}{number}"
        return row


PLAIN = RowMap(CorpusEntry(path="."))
"""Records that are rows."""


def _exploded(record: dict[str, Any], paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """A record for each element of its lists.

    Raises:
        RowRejected: One is no list, or they have other lengths.
    """
    lists = {path: value_at(record, path) for path in paths}
    for path, values in lists.items():
        if not isinstance(values, list):
            raise RowRejected(
                Status.WRONG_TYPE,
                f"explode: {path!r}: expected a list, got {type(values).__name__}"
                if values is not None
                else f"explode: there is nothing at {path!r}",
            )
    lengths = {path: len(values) for path, values in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{path} {length}" for path, length in lengths.items())
        raise RowRejected(Status.WRONG_TYPE, f"explode: the lists have other lengths: {told}")
    for number in range(next(iter(lengths.values()))):
        one = record
        for path, values in lists.items():
            one = with_value(one, path, values[number])
        yield one


def _split(record: dict[str, Any], split: Split) -> dict[str, Any]:
    """Prompt and response of one list, and the response's mask where one is there.

    Raises:
        RowRejected: What is needed is missing, of another kind, or beyond the list.
    """
    ids = _a_list(record, split.ids)
    total = len(ids) if split.length is None else _a_length(record, split.length, len(ids))
    ids = ids[:total]
    if split.mask is not None:
        mask = _a_list(record, split.mask)
        if len(mask) < total:
            raise RowRejected(
                Status.MASK_LENGTH, f"{split.mask!r} has {len(mask)} values for {total} ids"
            )
        generated = (at for at, value in enumerate(mask[:total]) if value)
        begin = next(generated, total)
        return dict(zip(_SPLIT, (ids[:begin], ids[begin:], mask[begin:total]), strict=True))
    if split.prompt_length is not None:
        begin = _a_length(record, split.prompt_length, total)
    else:
        begin = total - _a_length(record, str(split.response_length), total)
    return {"prompt_ids": ids[:begin], "response_ids": ids[begin:]}


def _a_list(record: dict[str, Any], path: str) -> list[Any]:
    value = value_at(record, path)
    if not isinstance(value, list):
        came = "nothing" if value is None else type(value).__name__
        raise RowRejected(Status.WRONG_TYPE, f"split: {path!r}: expected a list, got {came}")
    return value


def _a_length(record: dict[str, Any], path: str, most: int) -> int:
    value = value_at(record, path)
    if type(value) is not int or not 0 <= value <= most:
        raise RowRejected(
            Status.WRONG_TYPE,
            f"split: {path!r}: expected a length of 0 to {most}, what the list has, got {value!r}",
        )
    return value


_SAID_BY = {"human": "user", "gpt": "assistant"}
"""Roles in conversations of ``from`` and ``value``."""


def _answered(conversation: Any, label: str) -> dict[str, Any]:
    """A conversation whose last message is the answer, as ``messages`` and ``response``.

    Raises:
        RowRejected: It is none.
    """
    messages = conversation if isinstance(conversation, list) else []
    messages = [_message(one) if isinstance(one, dict) else one for one in messages]
    last = messages[-1] if messages else None
    if len(messages) < 2 or not isinstance(last, dict) or last.get("role") != "assistant":
        raise RowRejected(
            Status.WRONG_TYPE,
            f"{label!r}: expected a list of messages of which the last is the assistant's answer",
        )
    return {"messages": messages[:-1], "response": last.get("content")}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if "role" in message or "from" not in message:
        return message
    said_by = message["from"]
    return {"role": _SAID_BY.get(said_by, said_by), "content": message.get("value")}


def root_of(pattern: str, file: str) -> str:
    """The folder below which ``sample_id: auto`` names a file: what the entry spells out."""
    spelled = pattern
    for wildcard in "*?[":
        spelled = spelled.partition(wildcard)[0]
    if spelled == file or spelled != pattern:
        return spelled.rpartition("/")[0] + "/"
    return f"{spelled.rstrip('/')}/"
