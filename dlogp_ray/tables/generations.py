"""The generations table: a row an answer, by a problem, a random stream and an intervention.

Its rows are a corpus that can be scored. All lists of a row but the prompt's have the answer's
length. An intervention of two policies is a policy too: its label stands as ``policy``, and as
``generator`` of the row.
"""

import pyarrow as pa

GENERATIONS_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("generator", pa.string(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("threshold", pa.float64()),
        pa.field("rate", pa.float64()),
        pa.field("primary", pa.string(), nullable=False),
        pa.field("gamma", pa.float64()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("temperature", pa.float32(), nullable=False),
        pa.field("top_p", pa.float32(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
        pa.field("correct", pa.bool_()),
        pa.field("reward", pa.float32()),
        pa.field("close_draws", pa.int32(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32())),
        pa.field("response_ids", pa.list_(pa.int32())),
        pa.field("fired", pa.list_(pa.bool_())),
        pa.field("changed", pa.list_(pa.bool_())),
    ]
)
