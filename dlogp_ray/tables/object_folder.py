"""Where a run's objects are created: one a unit, whole and once. That it exists is the commit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from dlogp_ray import store
from dlogp_ray.tables.content_hash import content_hash
from dlogp_ray.tables.encoding import Footer, encode_object
from dlogp_ray.tables.kinds import Kind
from dlogp_ray.tables.object_names import object_name, unit_name


class ObjectSummary(Protocol):
    """What adds up of rows: a model of pydantic."""

    @property
    def status(self) -> dict[str, int]:
        """Rows by status."""

    def model_dump(self) -> dict[str, Any]:
        """All of it, as JSON has it."""


@dataclass(frozen=True)
class ObjectFolder:
    """The folder of a run's objects; small, and the same for all workers.

    Attributes:
        run_uri: Of the run.
        kind: Of its table.
        origin: What the run is made from, as ``StoredRun.origin``.
        conditional: Whether the store creates objects conditionally.
    """

    run_uri: str
    kind: Kind
    origin: str
    conditional: bool

    def uri(self, unit: str) -> str:
        """Address of a unit's object."""
        return f"{self.run_uri}/{object_name(self.kind.table, unit)}"

    def commit(
        self,
        index: int,
        rows: pa.Table,
        *,
        rows_in: int,
        summary: ObjectSummary,
        special_tokens: Mapping[str, int] | None = None,
    ) -> bool:
        """Create the object of a unit, unless it is there.

        Args:
            index: Of the unit.
            rows: By the kind's schema.
            rows_in: What they were made from, as ``Footer`` says.
            summary: Of them.
            special_tokens: The same.

        Returns:
            Whether it was created here.

        Raises:
            ValueError: A list has another length than its row's response.
        """
        footer = Footer(
            unit=index,
            rows_in=rows_in,
            tokens=pc.sum(pc.list_value_length(rows["response_ids"]), min_count=0).as_py(),
            status=dict(summary.status),
            special_tokens=dict(special_tokens or {}),
            summary=summary.model_dump(),
            content_hash=content_hash(rows),
            schema_version=self.kind.schema_version,
            origin=self.origin,
        )
        data = encode_object(rows, footer)
        return store.create(self.uri(unit_name(index)), data, conditional=self.conditional)
