"""Which rows of a corpus entry are meant: by a condition in SQL, and by a share of the groups."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

import duckdb
import pyarrow as pa

from dlogp_ray.corpus.reading import RawRow
from dlogp_ray.errors import Refused, RowRejected
from dlogp_ray.status import Status
from dlogp_ray.tables.naming import nodes_of

_AT_ONCE = 64
"""Rows that are held for one query: each may take ``max_row_bytes``."""
_OTHER_CLASSES = {"SUBQUERY", "WINDOW", "STAR", "LAMBDA_REF", "PARAMETER"}
"""Expressions that look at more than the row."""


class Condition:
    """A condition over the columns of one row, in DuckDB's SQL.

    Args:
        where: What stands behind ``WHERE``.

    Raises:
        Refused: It is none, or looks at more than a row: other rows, files, the time or chance.
    """

    def __init__(self, where: str) -> None:
        """Take it apart; nothing is looked at yet."""
        self._where = where
        if not where.strip():
            raise self._refused("it is empty")
        query = f"SELECT CAST(({where}) AS BOOLEAN) AS chosen FROM rows"
        ((text,),) = self._connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
        tree = json.loads(text)
        if tree.get("error") or len(tree["statements"]) != 1:
            raise self._refused(tree.get("error_message", "expected one condition"))
        select = tree["statements"][0]["node"]
        if select.get("from_table", {}).get("table_name") != "rows" or select["where_clause"]:
            raise self._refused("expected one condition")
        nodes = list(nodes_of(select["select_list"]))
        if len(select["select_list"]) != 1 or any(
            node.get("class") in _OTHER_CLASSES for node in nodes
        ):
            raise self._refused("it can look at the row's own columns alone")
        functions = {node["function_name"] for node in nodes if node.get("class") == "FUNCTION"}
        if changing := functions & self._changing:
            raise self._refused(f"{min(changing)} gives another answer each time")
        self.columns = tuple(
            dict.fromkeys(n["column_names"][0] for n in nodes if n.get("class") == "COLUMN_REF")
        )
        self._query = query

    def check(self, there: Collection[str]) -> None:
        """Check that rows have the columns that it looks at.

        Raises:
            Refused: They have not.
        """
        known = {name.lower() for name in there}
        if missing := [name for name in self.columns if name.lower() not in known]:
            raise self._refused(
                f"there is no column {missing[0]!r}; the first rows have {', '.join(sorted(there))}"
            )

    def chosen(self, rows: Iterable[RawRow]) -> Iterator[RawRow]:
        """The rows of which it is true, in order; what is null is not chosen."""
        left = iter(rows)
        while batch := list(islice(left, _AT_ONCE)):
            sound = [row for _, row in batch if not isinstance(row, RowRejected)]
            answers = iter(self._answers(sound))
            for offset, row in batch:
                answer = True if isinstance(row, RowRejected) else next(answers)
                if isinstance(answer, RowRejected):
                    yield offset, answer
                elif answer:
                    yield offset, row

    def _answers(self, rows: list[dict[str, Any]]) -> list[bool | RowRejected | None]:
        """Of each row: whether it is true, or why that can't be said."""
        if not rows:
            return []
        try:
            arrays = [pa.array([_value(row, name) for row in rows]) for name in self.columns]
            count = pa.array(range(len(rows)))
            table = pa.table([*arrays, count], names=[*self.columns, "_"])
            self._connection.register("rows", table)
            return [answer for (answer,) in self._connection.execute(self._query).fetchall()]
        except (duckdb.Error, pa.ArrowException) as error:
            if len(rows) == 1:  # else one of them is of another type
                said = str(error).partition("\n")[0]
                return [RowRejected(Status.WRONG_TYPE, f"where: {self._where}: {said}")]
            return [answer for row in rows for answer in self._answers([row])]

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect()
        for setting in (
            "threads = 1",
            "python_enable_replacements = false",
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        return connection

    @cached_property
    def _changing(self) -> set[str]:
        rows = self._connection.execute(
            "SELECT function_name FROM duckdb_functions() "
            "WHERE stability IS NOT NULL AND stability <> 'CONSISTENT'"
        ).fetchall()
        return {name for (name,) in rows}

    def _refused(self, why: str) -> Refused:
        return Refused(
            f"where: {self._where}: {why}. Expected a condition, as in reward > 0 AND step >= 300"
        )


@lru_cache
def columns_of(where: str) -> tuple[str, ...]:
    """The columns that a condition looks at.

    Raises:
        Refused: As ``Condition``.
    """
    return Condition(where).columns


def _value(row: dict[str, Any], name: str) -> Any:
    """Of a column, in whatever case the condition has its name."""
    if name in row:
        return row[name]
    return next((value for other, value in row.items() if other.lower() == name.lower()), None)


def sampled(rows: Iterable[RawRow], share: float) -> Iterator[RawRow]:
    """The rows of a share of the groups, the same on every machine; groups stay whole.

    A row without ``group_id`` is a group of its own.
    """
    for offset, row in rows:
        if isinstance(row, RowRejected) or _place(row) < share:
            yield offset, row


def _place(row: dict[str, Any]) -> float:
    """Of its group, from 0 to 1."""
    name = row.get("group_id")
    name = row.get("sample_id") if name is None else name
    digest = hashlib.blake2b(str(name).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
