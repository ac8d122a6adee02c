"""The scores table: its columns and their types.

One row a sample and compared policy. All lists of a row have one length, the response's; a row
that could not be scored has empty lists, a list that the job did not compute (one policy alone)
is null.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

Side = Literal["base", "rl", "pair"]


@dataclass(frozen=True)
class Statistic:
    """A column with a value for each response token: its one declaration.

    The schema follows from it, what a policy alone fills, the noise floor's columns, the report's
    labels, and the table in this room's README.

    Attributes:
        name: Of the column.
        kind: Of a value.
        side: Which policy it is of, or of both.
        what: It is, for people who read the table.
        unit: Of a value; "" for none.
        label: In the report.
        title: Of a chart of its own.
        change: Whether it is 0 where the policies agree: what a noise floor holds for.
    """

    name: str
    kind: pa.DataType
    side: Side
    what: str
    unit: str = ""
    label: str = ""
    title: str = ""
    change: bool = False

    @property
    def field(self) -> pa.Field:
        """As it stands in the schema: a list a row."""
        return pa.field(self.name, pa.list_(self.kind))

    @property
    def axis(self) -> str:
        """What an axis of its values is called."""
        return (self.title or self.label) + (f" ({self.unit})" if self.unit else "")


_LOGP = "log π(token \\| everything before it)"
_ENTROPY = "−Σ π log π"
_MAX = "log-probability of the first choice"
_RANK = "tokens with a strictly higher probability (0: the first choice)"
_TOP1 = "the first choices, and whether they are the same"
_KL = "KL(π_RL ‖ π_base) and the reverse"
_OF_RL_TOP1 = "how the base sees the RL policy's first choice"


def _of_policy(side: Side, whose: str) -> tuple[Statistic, ...]:
    return (
        Statistic(f"logp_{side}", pa.float32(), side, _LOGP, "nats", f"log p of {whose}"),
        Statistic(f"entropy_{side}", pa.float32(), side, _ENTROPY, "nats", f"entropy of {whose}"),
        Statistic(f"max_logp_{side}", pa.float32(), side, _MAX, "nats"),
        Statistic(f"rank_{side}", pa.int32(), side, _RANK, label=f"rank in {whose}"),
        Statistic(f"top1_id_{side}", pa.int32(), side, _TOP1),
    )


_CHANGE: dict[str, Any] = {"unit": "nats", "change": True}
COLUMNS = (
    *_of_policy("base", "the base"),
    *_of_policy("rl", "RL"),
    Statistic(
        *("delta_logp", pa.float32(), "pair", "`logp_rl − logp_base`, signed"),
        label="Δlog p",
        **_CHANGE,
    ),
    Statistic("kl_rl_base", pa.float32(), "pair", _KL, label="KL(RL ‖ base)", **_CHANGE),
    Statistic("kl_base_rl", pa.float32(), "pair", _KL, label="KL(base ‖ RL)", **_CHANGE),
    Statistic(
        *("js", pa.float32(), "pair", "Jensen-Shannon divergence, 0 to ln 2"),
        label="JS",
        title="Jensen-Shannon divergence",
        **_CHANGE,
    ),
    Statistic("logp_base_of_rl_top1", pa.float32(), "pair", _OF_RL_TOP1, "nats"),
    Statistic("rank_base_of_rl_top1", pa.int32(), "pair", _OF_RL_TOP1),
    Statistic("top1_agree", pa.bool_(), "pair", _TOP1),
)
"""Of one value a token, in the table's order."""
OF = {column.name: column for column in COLUMNS}
STATISTICS = tuple(OF)
BASE_STATISTICS, RL_STATISTICS, PAIR_STATISTICS = (
    tuple(column.name for column in COLUMNS if column.side == side)
    for side in ("base", "rl", "pair")
)


IDENTITY_FIELDS = (
    pa.field("sample_id", pa.string()),
    pa.field("group_id", pa.string()),
    pa.field("generator", pa.string()),
    pa.field("policy", pa.string(), nullable=False),
    pa.field("step", pa.int32()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("source_file", pa.string(), nullable=False),
    pa.field("source_offset", pa.int64(), nullable=False),
    pa.field("token_hash", pa.string()),
    pa.field("prompt_hash", pa.string()),
    pa.field("prompt_len", pa.int32()),
    pa.field("temperature", pa.float32()),
    pa.field("top_p", pa.float32()),
    pa.field("reward", pa.float32()),
    pa.field("from_text", pa.bool_(), nullable=False),
    pa.field("response_ids", pa.list_(pa.int32())),
    pa.field("response_mask", pa.list_(pa.bool_())),
)
STATISTIC_FIELDS = tuple(column.field for column in COLUMNS)
RESERVED = frozenset(field.name for field in (*IDENTITY_FIELDS, *STATISTIC_FIELDS))

CARRY_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "floats": pa.list_(pa.float32()),
}
"""``floats``: a value a response token, or null."""


def scores_schema(carry: Mapping[str, str]) -> pa.Schema:
    """The scores table's schema with the carried metadata columns at the end."""
    carried = [pa.field(name, CARRY_TYPES[kind]) for name, kind in carry.items()]
    return pa.schema([*IDENTITY_FIELDS, *STATISTIC_FIELDS, *carried])
