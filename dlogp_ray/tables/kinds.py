"""The kinds of tables that jobs make: all that differs between them, in one description each.

Each kind has a schema of its own, whose version its job's fingerprint and its objects' footers say:

    scores       2: special tokens of text rows are not doubled, and are counted in footers and
                 manifest. 3: a footer says what its run was made from; the version of a file on a
                 disk is its time in ns.
    generations  2 and 3: with those of scores.
    weights      2: a footer says what its table was made from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from dlogp_ray.tables.generations import GENERATIONS_SCHEMA
from dlogp_ray.tables.info import InterveneInfo, ReweightInfo, RunInfo, ScoreInfo
from dlogp_ray.tables.scores import STATISTICS, scores_schema
from dlogp_ray.tables.weights import WEIGHTS_SCHEMA

Beside = Literal["analyses", "weights", "curve"]
"""What is made from a table and lies beside it."""


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of table.

    Attributes:
        job: That makes it.
        table: Its name: of the folder of its objects, and of its view.
        schema_version: Of its rows, as this version writes them.
        hashed_since: The schema from which on ``run.json`` has a hash of itself, and footers say
            what they were made from.
        info: What ``run.json`` holds.
        schema: Of its rows, by carried column -> type.
        per_token: Columns with a value a token, in the order of the view ``tokens``.
        always: The one of them that every row has; the others may be null.
        renamed: What the view ``tokens`` calls some of them.
        rejected_have_tokens: Whether rows that are not ok have lists, as answers without a grade.
        counts: What ``Unit.tokens`` counts.
        named_by: The option that names a run of it.
        remedy: How damaged objects are made again, of the run at ``{uri}``.
        beside: What may lie beside it.
    """

    job: str
    table: str
    schema_version: int
    hashed_since: int
    info: type[RunInfo]
    schema: Callable[[Mapping[str, str]], pa.Schema]
    per_token: tuple[str, ...]
    always: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    rejected_have_tokens: bool = False
    counts: str = "tokens"
    named_by: str = "run_id"
    remedy: str = "`dlogp verify {uri} --repair` puts them aside and makes their units again"
    beside: tuple[Beside, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """There is one of each, in every process."""
        return KINDS.__getitem__, (self.job,)


SCORES = Kind(
    job="score",
    table="scores",
    schema_version=3,
    hashed_since=3,
    info=ScoreInfo,
    schema=scores_schema,
    per_token=("response_ids", "response_mask", *STATISTICS),
    always="response_mask",
    renamed={"response_ids": "token_id"},
    beside=("analyses", "weights"),
)
GENERATIONS = Kind(
    job="intervene",
    table="generations",
    schema_version=3,
    hashed_since=3,
    info=InterveneInfo,
    schema=lambda _carry: GENERATIONS_SCHEMA,
    per_token=("response_ids", "fired", "changed"),
    always="fired",
    renamed={"response_ids": "token_id"},
    rejected_have_tokens=True,
    counts="answers",
    beside=("curve",),
)
WEIGHTS = Kind(
    job="reweight",
    table="weights",
    schema_version=2,
    hashed_since=2,
    info=ReweightInfo,
    schema=lambda _carry: WEIGHTS_SCHEMA,
    per_token=("response_ids", "loss_weights"),
    always="loss_weights",
    renamed={"response_ids": "token_id", "loss_weights": "loss_weight"},
    named_by="--name",
    remedy="Delete {uri}, and `dlogp reweight` makes the table again",
)
KINDS = {kind.job: kind for kind in (SCORES, GENERATIONS, WEIGHTS)}
"""Job, as ``run.json`` names it -> the kind of its table."""
