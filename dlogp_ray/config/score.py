"""The config of a score job."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dlogp_ray.config.corpus import CorpusEntry, RowSource, as_entry
from dlogp_ray.config.job import OnOff, Uri, as_list, on_or_off
from dlogp_ray.config.run import MAX_ROW_BYTES, RunConfig

CarryType = Literal["string", "int64", "float64", "bool", "floats"]


Entry = Annotated[CorpusEntry, BeforeValidator(as_entry, json_schema_input_type=CorpusEntry | Uri)]


class ScoreConfig(RowSource, RunConfig):
    """A score job: corpus and policies in, a table of per-token statistics out."""

    corpus: Annotated[
        tuple[Entry, ...],
        BeforeValidator(
            as_list,
            json_schema_input_type=Entry | Annotated[tuple[Entry, ...], Field(min_length=1)],
        ),
        Field(
            min_length=1,
            examples=[
                "corpus: rollouts/, or corpus: [a.jsonl, {path: b.parquet, constants: "
                "{generator: rl}}]"
            ],
        ),
    ]
    """JSONL or Parquet files, folders or globs, local or on any fsspec URL: each a path, or with
    what holds for its rows alone."""
    carry: tuple[str, ...] | dict[str, CarryType] = Field(
        (), examples=["carry: [difficulty, source]"]
    )
    """Metadata columns to carry into the table; a mapping also fixes their types, ``floats`` of a
    list with a value a response token, as ``rollout_logp`` is."""
    pairs: bool = False
    """Rows have two responses, ``chosen`` and ``rejected`` (``chosen_ids``, ``rejected_ids``), as
    preference data has them: two samples, ``<sample_id>/chosen`` and ``<sample_id>/rejected``."""
    append_eos: bool = False
    """Whether the end-of-sequence token is scored as the last token of a text response."""
    max_row_bytes: Annotated[int, Field(ge=1, le=2**62)] = MAX_ROW_BYTES
    """A row that takes more, as a line of JSONL or decoded from Parquet, is rejected, and a row
    group that unfolds to more than this for each of its rows is refused: a few bytes can stand for
    gigabytes. A response of a million tokens with log-probabilities takes 30 MB."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Logits are divided by it before every statistic."""
    statistics: Literal["all", "sampled"] = "all"
    """What to compute: all columns, or only ``logp_base``, ``logp_rl`` and ``delta_logp`` of the
    sampled tokens, which costs less; the other columns are null then."""
    unit_tokens: Annotated[int, Field(ge=1)] = 2_000_000
    """Prompt and response tokens of one work unit, about. One to five minutes of one actor is
    right."""
    token_budget: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one forward pass; a longer sequence runs in several (default: 2,048 on a CPU,
    16,384 on a GPU)."""
    compile: Annotated[
        Literal["auto", "on", "off"], BeforeValidator(on_or_off, json_schema_input_type=OnOff)
    ] = "auto"
    """Whether ``torch.compile`` fuses the policies' layers and the statistics; auto tries it where
    the job is long enough to pay for it, and keeps what ends sooner."""

    @model_validator(mode="after")
    def _known_columns(self) -> Self:
        for entry in self.entries:
            entry.check(self.carry)
        return self

    @property
    def entries(self) -> tuple[CorpusEntry, ...]:
        """The corpus, each entry with what the job says where it says nothing."""
        return tuple(entry.completed(self) for entry in self.corpus)
