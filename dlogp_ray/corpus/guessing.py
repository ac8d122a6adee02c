"""What a corpus entry may have to say of a file, as far as the file's own columns show it."""

from collections.abc import Collection
from dataclasses import dataclass, field

from dlogp_ray.config.corpus import FormatName
from dlogp_ray.corpus.columns import head
from dlogp_ray.corpus.files import CorpusFile
from dlogp_ray.corpus.formats import format_like
from dlogp_ray.errors import RowRejected

_ROWS = 20
_KNOWN = {
    "sample_id": ("id", "uid", "uuid", "example_id", "idx"),
    "prompt_ids": ("prompt_token_ids", "prompt_tokens", "input_ids", "query_ids"),
    "response_ids": (
        "response_token_ids",
        "response_tokens",
        "completion_ids",
        "completion_token_ids",
        "output_ids",
        "output_token_ids",
        "output_tokens",
    ),
    "prompt": ("question", "problem", "query", "instruction", "input"),
    "conversation": ("conversations",),
    "response": ("completion", "output", "answer", "generation", "generated_text", "solution"),
    "generator": ("model", "model_name", "policy"),
    "group_id": ("problem_id", "prompt_id", "task_id", "doc_id"),
    "reward": ("score", "rewards", "correct", "accuracy"),
    "response_mask": ("loss_mask", "action_mask", "completion_mask"),
    "rollout_logp": ("logprobs", "rollout_logprobs", "sampling_logprobs", "old_logprobs"),
}
"""Standard column -> what it is called elsewhere, the likeliest first."""


@dataclass(frozen=True)
class Guess:
    """What an entry may say.

    Attributes:
        format: The layout that the file has.
        columns: Standard column -> its name there.
        auto: Whether ids have to be made.
        carry: Columns that may be carried: of one value a row, and the sampler's log-probabilities.
    """

    format: FormatName | None = None
    columns: dict[str, str] = field(default_factory=dict)
    auto: bool = False
    carry: tuple[str, ...] = ()


def guess(file: CorpusFile, max_row_bytes: int) -> Guess:
    """Look at the first rows of a file.

    Raises:
        Refused: It can't be read.
    """
    seen: dict[str, object] = {}
    for _, row in head(file, max_row_bytes, _ROWS):
        if not isinstance(row, RowRejected):
            seen |= {name: value for name, value in row.items() if value is not None}
    if (form := format_like(seen)) is not None and not _whole(seen):
        return Guess(form)
    columns = {
        standard: next(name for name in names if name in seen)
        for standard, names in _KNOWN.items()
        if standard not in seen and any(name in seen for name in names)
    }
    there = seen.keys() | columns.keys()
    columns = {name: theirs for name, theirs in columns.items() if not _needless(name, there)}
    standard = {*_KNOWN, "messages", "temperature", "top_p"}
    single = (str, int, float)
    carried = [
        name
        for name, value in seen.items()
        if name not in standard | set(columns.values()) and isinstance(value, single)
    ]
    if "rollout_logp" in there:
        carried.append("rollout_logp")
    return Guess(None, columns, "sample_id" not in there, tuple(carried))


def _whole(names: Collection[str]) -> bool:
    """Whether rows can be scored as they are."""
    prompts, responses = {"prompt_ids", "prompt", "messages"}, {"response_ids", "response"}
    return bool("sample_id" in names and prompts & set(names) and responses & set(names))


def _needless(name: str, there: Collection[str]) -> bool:
    """Whether a column says what another one says better: ids come before text."""
    return (name == "prompt" and bool({"prompt_ids", "messages"} & set(there))) or (
        name in ("response", "conversation") and "response_ids" in there
    )
