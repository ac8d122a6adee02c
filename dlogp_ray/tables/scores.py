"""The scores table: its columns and their types.

One row a sample and compared policy. All lists of a row have one length, the response's; a row
that could not be scored has empty lists, a list that the job did not compute (one policy alone)
is null.
"""

from collections.abc import Mapping

import pyarrow as pa

BASE_STATISTICS = ("logp_base", "entropy_base", "max_logp_base", "rank_base", "top1_id_base")
RL_STATISTICS = ("logp_rl", "entropy_rl", "max_logp_rl", "rank_rl", "top1_id_rl")
PAIR_STATISTICS = (
    "delta_logp",
    "kl_rl_base",
    "kl_base_rl",
    "js",
    "logp_base_of_rl_top1",
    "rank_base_of_rl_top1",
    "top1_agree",
)
STATISTICS = BASE_STATISTICS + RL_STATISTICS + PAIR_STATISTICS


def _statistic_type(name: str) -> pa.DataType:
    if name == "top1_agree":
        return pa.list_(pa.bool_())
    integer = name.startswith(("rank_", "top1_id_"))
    return pa.list_(pa.int32() if integer else pa.float32())


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
STATISTIC_FIELDS = tuple(pa.field(name, _statistic_type(name)) for name in STATISTICS)
RESERVED = frozenset(field.name for field in (*IDENTITY_FIELDS, *STATISTIC_FIELDS))

CARRY_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
}


def scores_schema(carry: Mapping[str, str]) -> pa.Schema:
    """The scores table's schema with the carried metadata columns at the end."""
    carried = [pa.field(name, CARRY_TYPES[kind]) for name, kind in carry.items()]
    return pa.schema([*IDENTITY_FIELDS, *STATISTIC_FIELDS, *carried])
