"""The weights table: a row a sample, with a weight for each token of its response.

It is a run of its own, in the folder ``weights/<name>`` of the scores run that it was made from.
"""

from collections.abc import Iterable
from typing import Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from dlogp_ray.status import count_rejected

WEIGHTS_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("group_id", pa.string()),
        pa.field("generator", pa.string()),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("token_hash", pa.string()),
        pa.field("prompt_hash", pa.string()),
        pa.field("weight_min", pa.float32()),
        pa.field("weight_mean", pa.float32()),
        pa.field("weight_max", pa.float32()),
        pa.field("share_changed", pa.float32()),
        pa.field("response_ids", pa.list_(pa.int32())),
        pa.field("loss_weights", pa.list_(pa.float32())),
    ]
)


class WeightsSummary(BaseModel):
    """What adds up of weights.

    Attributes:
        status: Rows by status; all but "ok" have no weights.
        tokens: That count, of rows with weights.
        changed: Those whose weight is not 1.
        total: Sum of their weights.
        undefined: Those that weigh 1 because a scheme is not defined there: no spread in the
            group, or no entropy.
        other_temperature: Rows with weights that say that they were sampled at another temperature
            than they were scored at.
        least: Smallest weight; None without tokens.
        greatest: Largest.
    """

    model_config = ConfigDict(frozen=True)

    status: dict[str, int] = {}
    tokens: int = 0
    changed: int = 0
    total: float = 0.0
    undefined: int = 0
    other_temperature: int = 0
    least: float | None = None
    greatest: float | None = None

    @property
    def rows(self) -> int:
        """Of all statuses."""
        return sum(self.status.values())

    @property
    def rejected(self) -> int:
        """Rows without weights."""
        return count_rejected(self.status)

    @property
    def mean(self) -> float | None:
        """Of the weights; None without tokens."""
        return self.total / self.tokens if self.tokens else None

    @classmethod
    def merge(cls, parts: Iterable[Self]) -> Self:
        """The sum of several."""
        parts = list(parts)
        status: dict[str, int] = {}
        for part in parts:
            for name, rows in part.status.items():
                status[name] = status.get(name, 0) + rows
        return cls(
            status=status,
            tokens=sum(part.tokens for part in parts),
            changed=sum(part.changed for part in parts),
            total=sum(part.total for part in parts),
            undefined=sum(part.undefined for part in parts),
            other_temperature=sum(part.other_temperature for part in parts),
            least=min((part.least for part in parts if part.least is not None), default=None),
            greatest=max(
                (part.greatest for part in parts if part.greatest is not None), default=None
            ),
        )
