"""What a score job will see of its corpus: the first rows of each file as tokens, and warnings.

Needs the policies' tokenizers alone, and no Ray.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

from dlogp_ray.config import BASE, ScoreConfig
from dlogp_ray.config.job import check_config
from dlogp_ray.corpus.carry import carry_types
from dlogp_ray.corpus.columns import check_columns, head
from dlogp_ray.corpus.files import CorpusFile
from dlogp_ray.corpus.rows import RowRules
from dlogp_ray.corpus.sources import list_sources
from dlogp_ray.pipelines.run.policies import resolve_source, with_absolute_addresses
from dlogp_ray.pipelines.score.job import ScoreJob
from dlogp_ray.pipelines.score.stages import check_made, made_rows
from dlogp_ray.policies.tokenizers import load_tokenizer
from dlogp_ray.status import Status
from dlogp_ray.tables.places import place

FILES = 8
"""So many of the first are looked at."""
ROWS = 100
"""Of each file."""
_TEXTS = {"prompt": "prompt_ids", "response": "response_ids"}


class Piece(NamedTuple):
    """A token as people see it.

    Attributes:
        token: Its id.
        text: What it stands for.
        special: Whether it is a special token.
        masked: Whether it is scored, and left out of summaries.
    """

    token: int
    text: str
    special: bool
    masked: bool


@dataclass(frozen=True)
class RowLook:
    """A row as the policies will see it; a rejected one has no tokens."""

    place: str
    sample_id: str | None
    generator: str | None
    group_id: str | None
    reward: float | None
    status: str
    error: str | None
    prompt: Sequence[Piece]
    response: Sequence[Piece]


@dataclass(frozen=True)
class FileLook:
    """The beginning of a file.

    Attributes:
        uri: Of it.
        format: Its layout, where the job names one.
        mapped: Standard column -> where it is in a record, where that is another name.
        rows: That were looked at.
        rejected: By status, how many, and why the first was.
        prompt_tokens: The fewest, the mean and the most of the others.
        response_tokens: The same.
        shown: The first of them.
    """

    uri: str
    format: str | None
    mapped: Mapping[str, str]
    rows: int
    rejected: Mapping[str, tuple[int, str]]
    prompt_tokens: tuple[int, float, int] | None
    response_tokens: tuple[int, float, int] | None
    shown: Sequence[RowLook]


@dataclass(frozen=True)
class CorpusLook:
    """What was seen.

    Attributes:
        files: The first of the corpus.
        more: How many files there are beside them.
        warnings: What one who knows such corpora would ask about.
    """

    files: Sequence[FileLook]
    more: int
    warnings: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def look(config: ScoreConfig, shown: int = 1) -> CorpusLook:
    """Look at the first rows of each file.

    Args:
        config: The job.
        shown: Rows of each file whose tokens are given.

    Raises:
        Refused: As the job itself: rows lack what every row needs, or a policy has no tokenizer.
    """
    check_config(config, ScoreConfig)
    config = with_absolute_addresses(config, "corpus")
    files, maps = list_sources(config.entries)
    check_columns(files, maps, pairs=config.pairs, max_row_bytes=config.max_row_bytes)
    checkpoints = [
        resolve_source(name, source, config.policies.get(BASE), trust=config.trust)
        for name, source in config.policies.items()
    ]
    limits = [c.max_tokens for c in checkpoints if c.max_tokens is not None]
    rules = RowRules(
        vocab_size=min(checkpoint.vocab_size for checkpoint in checkpoints),
        max_tokens=min(limits, default=None),
        carry=carry_types(config.carry, files[0], maps[0], config.max_row_bytes),
    )
    job = ScoreJob(config.run_uri, config, rules, maps)
    names = list(config.policies)
    tokenizer = load_tokenizer(checkpoints[names.index(config.tokenizer_policy)])
    warnings = _Warnings(job, tokenizer)
    looks = [_file(file, job, tokenizer, warnings, shown) for file in files[:FILES]]
    return CorpusLook(looks, max(0, len(files) - FILES), warnings.told())


def _file(
    file: CorpusFile, job: ScoreJob, tokenizer: Any, warnings: "_Warnings", shown: int
) -> FileLook:
    row_map = job.maps[file.source]
    counts, first = Counter[str](), dict[str, str]()
    lengths: dict[str, list[int]] = {name: [] for name in _TEXTS.values()}
    looks: list[RowLook] = []
    rows = 0
    records = head(file, job.config.max_row_bytes, ROWS)
    for offset, made in made_rows(records, file.uri, file.source, job):
        (row,) = check_made([(offset, made)], file.uri, file.source, job).to_pylist()
        rows += 1
        at = place(file.uri, offset)
        if row["status"] == Status.OK:
            for name, values in lengths.items():
                values.append(len(row[name]))
            warnings.look(at, made if isinstance(made, dict) else {}, row)
        else:
            counts[row["status"]] += 1
            first.setdefault(row["status"], f"{at}: {row['error']}")
        if len(looks) < shown:
            looks.append(_row(at, row, tokenizer))
    return FileLook(
        uri=file.uri,
        format=row_map.entry.format,
        mapped=dict(row_map.entry.columns),
        rows=rows,
        rejected={status: (count, first[status]) for status, count in counts.items()},
        prompt_tokens=_spread(lengths["prompt_ids"]),
        response_tokens=_spread(lengths["response_ids"]),
        shown=looks,
    )


def _spread(lengths: Sequence[int]) -> tuple[int, float, int] | None:
    return (min(lengths), sum(lengths) / len(lengths), max(lengths)) if lengths else None


def _row(at: str, row: Mapping[str, Any], tokenizer: Any) -> RowLook:
    pieces = partial(_pieces, tokenizer)
    return RowLook(
        place=at,
        prompt=pieces(row["prompt_ids"], [True] * len(row["prompt_ids"])),
        response=pieces(row["response_ids"], row["response_mask"]),
        **{name: row[name] for name in ("sample_id", "generator", "group_id", "reward")},
        status=row["status"],
        error=row["error"],
    )


def _pieces(tokenizer: Any, ids: Sequence[int], mask: Sequence[bool]) -> list[Piece]:
    special = set(tokenizer.all_special_ids)
    return [
        Piece(token, str(tokenizer.decode([token])), token in special, not kept)
        for token, kept in zip(ids, mask, strict=True)
    ]


@dataclass
class _Warnings:
    """What rows raise, counted.

    Attributes:
        job: That they are for.
        tokenizer: Its own.
        rows: That were looked at.
        raised: Warning -> how many rows raise it, and where the first is.
        groups: Prompts of each group.
    """

    job: ScoreJob
    tokenizer: Any
    rows: int = 0
    raised: dict[str, tuple[int, str]] = field(default_factory=dict)
    groups: dict[str, set[tuple[int, ...]]] = field(default_factory=dict)

    def look(self, at: str, raw: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Look at a row that will be scored."""
        self.rows += 1
        for warning in self._of(raw, row):
            count, first = self.raised.get(warning, (0, at))
            self.raised[warning] = (count + 1, first)
        if row["group_id"] is not None:
            self.groups.setdefault(row["group_id"], set()).add(tuple(row["prompt_ids"]))

    def told(self) -> list[str]:
        """In words."""
        told = [
            f"{count:,} of {self.rows:,} rows: {warning} (the first: {at})"
            for warning, (count, at) in self.raised.items()
        ]
        apart = sum(len(prompts) > 1 for prompts in self.groups.values())
        if apart:
            told.append(
                f"{apart:,} of {len(self.groups):,} groups have several prompts: group_id is of "
                "answers to one prompt"
            )
        elif self.groups and len(self.groups) == self.rows > 1:
            told.append("each group has one row here: a group_id is of several answers to a prompt")
        return told

    def _of(self, raw: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
        config, tokenizer = self.job.config, self.tokenizer
        for text, ids in _TEXTS.items():
            came = raw.get(text)
            if row["from_text"] and isinstance(came, str):
                back = tokenizer.decode(row[ids], skip_special_tokens=False)
                if came not in back:
                    yield f"the {text} does not survive tokenisation: it comes back as other text"
        ends = self.job.text_tokenizer().ends
        if row["response_ids"][-1] not in ends:
            remedy = "" if not row["from_text"] else "; append_eos: true scores one"
            yield f"the answer has no end-of-sequence token{remedy}"
        begin = tokenizer.bos_token_id
        if begin is not None and row["prompt_ids"][:2] == [begin, begin]:
            yield "the prompt begins with the beginning-of-sequence token twice"
        if (header := self._header) and not _ends_with(row["prompt_ids"], header):
            if set(row["prompt_ids"]) & set(header) & set(tokenizer.all_special_ids):
                yield "a chat prompt without the header that an answer follows"
        if row["temperature"] not in (None, config.temperature):
            yield (
                f"it was sampled at temperature {row['temperature']:g}, and is scored at "
                f"{config.temperature:g} (temperature:)"
            )
        if row["generator"] is None:
            yield "who wrote it is not said (constants: {generator: rl})"
        elif row["generator"] not in config.policies:
            yield f"its generator {row['generator']!r} is no policy of the job"

    @cached_property
    def _header(self) -> list[int]:
        """What the chat template puts behind a conversation for the answer to follow."""
        if not self.tokenizer.chat_template:
            return []
        asked = [{"role": "user", "content": "x"}]
        try:
            texts = [
                self.tokenizer.apply_chat_template(
                    asked, add_generation_prompt=header, tokenize=False
                )
                for header in (False, True)
            ]
        except Exception:  # noqa: BLE001  (a template may refuse this; rows then say so)
            return []
        added = texts[1].removeprefix(texts[0])
        return list(self.tokenizer(added, add_special_tokens=False)["input_ids"])


def _ends_with(ids: Sequence[int], end: Sequence[int]) -> bool:
    return list(ids[len(ids) - len(end) :]) == list(end)
