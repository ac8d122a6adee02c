"""A unit's row on its way from its descriptor to its receipt: what goes wrong stays in it.

A unit is one row of the stream; what it holds travels in that row as one Arrow payload.
"""

import traceback
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from dlogp_ray import store
from dlogp_ray.addresses import without_credentials
from dlogp_ray.errors import DlogpError, ExitCode

Row = dict[str, Any]


def guarded(stage: str, row: Row, work: Callable[[], Row]) -> Row:
    """The row that ``work`` makes; what it raises becomes the row's ``error``."""
    if row.get("error"):
        return row
    try:
        with store.patience():
            return work()
    except DlogpError as error:  # says all by itself
        return failure(row["index"], f"{stage}: {error}", error.exit_code)
    except Exception as error:  # noqa: BLE001  (recorded with the unit; the others go on)
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        cause = f"{stage}: {type(error).__name__}: {error} ({where})"
        return failure(row["index"], without_credentials(cause))


def failure(index: int, cause: str, code: int = ExitCode.FAILED_UNITS) -> Row:
    """The row of a unit that could not be done; ``code`` is what a job ends with for it alone."""
    nothing: Row = {"rows": 0, "payload": b"", "seconds": 0.0}
    return {"index": index, **nothing, "error": cause, "code": int(code)}


def receipt(row: Row, work: Callable[[], Row]) -> Row:
    """What the driver is told of a unit that ``work`` has written, or that went wrong before."""
    nothing: Row = {"created": False, "tokens": 0, "rows": 0, "rejected": 0, "seconds": 0.0}
    nothing |= {"uncompiled": "", "code": 0}

    def written() -> Row:
        return {"index": row["index"], **work(), "seconds": row["seconds"], "error": ""}

    done = guarded("writing", row, written)
    return nothing | {key: value for key, value in done.items() if key != "payload"}


def to_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow payload."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_bytes(data: bytes) -> pa.Table:
    """The table of an Arrow payload."""
    return pa.ipc.open_stream(data).read_all()
