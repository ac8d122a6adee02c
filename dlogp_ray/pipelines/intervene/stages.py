"""The stages of a unit of problems that need no policies: read them, write their answers."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.analysis.answers import summarise_answers
from dlogp_ray.errors import Damaged
from dlogp_ray.pipelines.intervene.job import InterveneJob
from dlogp_ray.pipelines.run.row import Row, from_bytes, guarded, receipt, to_bytes


def read_problem_unit(row: Row, *, job: InterveneJob) -> Row:
    """Descriptor -> the problems of the unit."""

    def work() -> Row:
        data = store.read(row["file"])
        if hashlib.sha256(data).hexdigest() != row["version"]:
            raise Damaged(f"{row['file']} is not the one that the run began with; put it back")
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        problems = file.read_row_group(row["index"])
        answers = len(problems) * job.answers_per_problem
        payload = to_bytes(problems)
        return {
            "index": row["index"],
            "rows": answers,
            "payload": payload,
            "seconds": 0.0,
            "error": "",
        }

    return guarded("reading", row, work)


def write_answers(row: Row, *, job: InterveneJob) -> Row:
    """Rows -> the object, created unless it exists; the receipt says whether it was."""

    def work() -> Row:
        answers = from_bytes(row["payload"])
        if len(answers) != row["rows"] * len(job.interventions):
            raise AssertionError(f"{row['rows']} answers each became {len(answers)} rows")
        summary = summarise_answers(answers)
        return {
            "created": job.folder.commit(
                row["index"], answers, rows_in=row["rows"], summary=summary
            ),
            "tokens": summary.tokens,
            "rows": len(answers),
            "rejected": summary.rejected,
        }

    return receipt(row, work)
