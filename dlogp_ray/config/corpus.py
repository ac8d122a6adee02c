"""What of a file is a row: the entries of a corpus, and what a job says for all of them."""

from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from dlogp_ray.config.job import ONE_OR_MORE_TEXTS, Uri
from dlogp_ray.config.model import ConfigModel
from dlogp_ray.config.prompts import Prompts

CORPUS_COLUMNS = (
    "sample_id",
    "prompt_ids",
    "response_ids",
    "prompt",
    "messages",
    "response",
    "conversation",
    "tools",
    "generator",
    "temperature",
    "top_p",
    "group_id",
    "reward",
    "response_mask",
    "expected_prompt_length",
    "expected_response_length",
    "chosen",
    "rejected",
    "chosen_ids",
    "rejected_ids",
)

FormatName = Literal[
    "areal",
    "deepmath",
    "lighteval",
    "lm_eval",
    "ms_swift",
    "nemo_rl",
    "open_instruct",
    "openai_batch",
    "openr1",
    "openthoughts",
    "prime_rl",
    "prime_rl_tokens",
    "roll",
    "skyrl",
    "slime",
    "synthetic_1",
    "trl",
    "verl",
]
"""Of layouts that other programs write: ``corpus.formats`` has a module for each."""

_CONSTANTS = ("generator", "temperature", "top_p", "group_id", "reward", "tools")
_PROMPTS = ("prompt_ids", "prompt", "messages")
_RESPONSES = ("response_ids", "response", "chosen_ids", "chosen", "rejected_ids", "rejected")


class Split(ConfigModel):
    """One list of ids that holds prompt and response, and where the response is in it."""

    ids: str
    """Where the list is."""
    mask: str | None = None
    """Where a list as long says 1 of each generated token: the response begins with the first."""
    prompt_length: str | None = None
    """Where the prompt's length stands."""
    response_length: str | None = None
    """Where the response's length stands: it is the end of the list."""
    length: str | None = None
    """Where the length of both stands, in a list that is padded behind them."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = {name: getattr(self, name) for name in ("mask", "prompt_length", "response_length")}
        if sum(way is not None for way in ways.values()) != 1:
            raise ValueError(f"expected one of {', '.join(ways)}")
        return self


class RowSource(Prompts):
    """How rows are made of a file's records; what an entry leaves out is what the job says."""

    format: FormatName | None = None
    """The program that wrote the files: what becomes of its records is known."""
    accept_lossy: bool = False
    """Score texts of a format that has lost their special tokens."""
    columns: dict[str, str] = Field(
        default_factory=dict,
        examples=["columns: {response_ids: output_tokens, response: 'resps[0][0]'}"],
    )
    """Standard or carried column -> where it is in a record: a name, or a path such as
    ``doc.query`` or ``resps[0][0]`` (from the end: ``turns[-1]``)."""
    constants: dict[str, str | float | list[Any]] = Field(
        default_factory=dict, examples=["constants: {generator: rl, temperature: 1.0, top_p: 1.0}"]
    )
    """Standard column -> its value in all rows that have none."""
    explode: Annotated[tuple[str, ...], ONE_OR_MORE_TEXTS] = Field(
        default=(), examples=["explode: [responses, scores]"]
    )
    """Where lists of one length are: a record becomes a row for each element, which stands in the
    list's place, and its number behind a ``/`` in ``sample_id``."""
    split: Split | None = Field(
        default=None, examples=["split: {ids: tokens, response_length: response_length}"]
    )
    """Cut one list of ids into ``prompt_ids`` and ``response_ids``."""
    where: str | None = Field(default=None, examples=['where: "reward > 0 AND step >= 300"'])
    """Which rows are meant, as a condition in DuckDB's SQL over a row's columns, those that are not
    mapped too; null is not chosen."""
    sample: Annotated[float, Field(gt=0, le=1)] | None = None
    """A share of the groups, by a hash of ``group_id``: each group is there as a whole or not."""
    sample_id: Literal["auto"] | None = None
    """``auto``: made of the file's path below the corpus entry and the record's place in it."""


class CorpusEntry(RowSource):
    """Files, and how rows are made of their records."""

    path: Uri
    """JSONL or Parquet: a file, a folder or a glob, local or on any fsspec URL."""

    @model_serializer(mode="wrap")
    def _as_given(self, dump: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        """A path alone as such; what is left to the job is not repeated."""
        fields = {
            name: value for name, value in dump(self).items() if name in self.model_fields_set
        }
        return self.path if fields.keys() == {"path"} else fields

    def completed(self, job: RowSource) -> Self:
        """With what the job says where the entry says nothing; names of both are taken together."""
        fields = {name: getattr(job, name) for name in RowSource.model_fields}
        for name in self.model_fields_set - {"path"}:
            own, theirs = getattr(self, name), fields[name]
            fields[name] = theirs | own if isinstance(own, dict) else own
        return self.model_copy(update=fields)

    def check(self, carried: Any) -> None:
        """Check the names on the left.

        Args:
            carried: Names of the columns that the job carries.

        Raises:
            ValueError: One is no column, or the format says the same already.
        """
        for field in ("explode", "split"):
            if self.format is not None and getattr(self, field):
                raise ValueError(f"{field}: format {self.format} says that; leave one of them out")
        allowed = {"columns": (*CORPUS_COLUMNS, *carried), "constants": (*_CONSTANTS, *carried)}
        for field, names in allowed.items():
            unknown = sorted(set(getattr(self, field)) - set(names))
            if unknown:
                raise ValueError(
                    f"{field}: {', '.join(unknown)} is not a standard column; the left side of "
                    f"each entry is one of {', '.join(names)}"
                )
        for prompt, response in product(_PROMPTS, _RESPONSES):
            if (theirs := self.columns.get(prompt, prompt)) == self.columns.get(response, response):
                raise ValueError(f"columns: {theirs!r} is named for {prompt} and for {response}")


def as_entry(value: object) -> object:
    """An entry of a path alone."""
    return value if isinstance(value, dict | CorpusEntry) else {"path": value}
