"""The stages of a unit of weights: weigh the rows of an object of the scores, write the weights."""

from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray.corpus.units import Unit
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.reweight.job import ReweightJob
from dlogp_ray.pipelines.run.row import Row, from_bytes, guarded, receipt, to_bytes
from dlogp_ray.tables.info import ReweightInfo
from dlogp_ray.tables.objects import TableObject, open_object
from dlogp_ray.tables.run import open_run
from dlogp_ray.tables.weights import WeightsSummary
from dlogp_ray.weights.rows import Rows, Weighing, WholeTable, weigh_rows
from dlogp_ray.weights.whole import GroupSums


def weigh_unit(row: Row, *, job: ReweightJob) -> Row:
    """Descriptor -> weighed rows."""

    def work() -> Row:
        unit = Unit(**{key: row[key] for key in Unit.__dataclass_fields__})
        rows = rows_of(TableObject(unit.name, unit.file, unit.file_entry), job.weighing)
        whole = _whole_table(job.run_uri, job.threshold)
        weights, summary = weigh_rows(rows, job.weighing, whole)
        return {
            "index": unit.index,
            "rows": len(weights),
            "payload": to_bytes(weights),
            "summary": summary.model_dump_json(),
            "seconds": 0.0,
            "error": "",
        }

    return guarded("weighing", row, work)


def write_weights(row: Row, *, job: ReweightJob) -> Row:
    """Weighed rows -> the object, created unless it exists; the receipt says whether it was."""

    def work() -> Row:
        summary = WeightsSummary.model_validate_json(row["summary"])
        weights = from_bytes(row["payload"])
        return {
            "created": job.folder.commit(
                row["index"], weights, rows_in=len(weights), summary=summary
            ),
            "tokens": summary.tokens,
            "rows": len(weights),
            "rejected": summary.rejected,
        }

    return receipt(row, work)


def rows_of(scores: TableObject, weighing: Weighing) -> Rows:
    """The rows of an object of the scores.

    Raises:
        Damaged: It can't be read.
        Refused: A column that a scheme needs was not computed.
    """
    with open_object(scores) as file:
        table = file.read(columns=weighing.read)
    try:
        return Rows.of(table, weighing)
    except Refused as error:
        raise Refused(f"{scores.uri}: {error}") from None


@lru_cache(maxsize=2)
def _whole_table(table: str, threshold: float | None) -> WholeTable:
    run = open_run(table)
    columns = {
        name: GroupSums(pq.read_table(pa.BufferReader(run.beginning(file))))
        for name, file in run.info_of(ReweightInfo).whole.groups.items()
    }
    return WholeTable(threshold=threshold, **columns)
