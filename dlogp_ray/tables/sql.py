"""SQL over a run: DuckDB views on its objects, nothing copied and nothing written.

scores        one row a sample and policy, response-aligned lists
generations   of an intervene job: one row an answer
tokens        one row a response token
rejected      rows of either whose status is not ok, with the error
curve         of a sealed intervene job: one row an intervention
"""

from typing import TYPE_CHECKING, Any

import duckdb

from dlogp_ray import store
from dlogp_ray.errors import Damaged, Refused
from dlogp_ray.tables import generations
from dlogp_ray.tables.schemas import STATISTICS

if TYPE_CHECKING:
    from dlogp_ray.tables.run import Run

_PER_TOKEN = {
    "scores": ("response_ids", "response_mask", *STATISTICS),
    "generations": generations.PER_TOKEN,
}
_TOKEN_NAMES = {"response_ids": "token_id"}


def connect(uri: str) -> duckdb.DuckDBPyConnection:
    """An in-memory database that can read the store of ``uri``."""
    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = false")
    if not store.is_local(uri):
        connection.register_filesystem(store.open_store(uri)[0])
    return connection


def query_run(run: "Run", query: str) -> Any:
    """Run ``query`` over the views of ``run``; a DuckDB relation.

    Raises:
        Refused: DuckDB refuses it.
    """
    connection = connect(run.uri)
    try:
        _create_views(connection, run)
    except duckdb.Error as error:
        raise Damaged(
            f"run {run.uri}: an object is missing or can't be read: {error}. `dlogp score` with "
            "the run's job names it, and says what to do"
        ) from None
    views = ", ".join(_names(connection))
    try:
        # COPY, ATTACH and CREATE could write, even over the run's own objects.
        statements = connection.extract_statements(query)
        selects = all(one.type == duckdb.StatementType.SELECT for one in statements)
        relation = connection.sql(query) if selects else None
        if relation is None:
            raise Refused(f"expected a query that returns rows, got: {query}")
        return relation
    except duckdb.Error as error:
        raise Refused(
            f"the query failed: {error}\nThere are the views {views}; DESCRIBE tokens lists columns"
        ) from None


def _names(connection: duckdb.DuckDBPyConnection) -> list[str]:
    found = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    return sorted(name for (name,) in found)


def _create_views(connection: duckdb.DuckDBPyConnection, run: "Run") -> None:
    uris = run.object_uris()
    if uris:
        names = ", ".join(_quoted(uri) for uri in uris)
        connection.execute(f"CREATE VIEW {run.table} AS SELECT * FROM read_parquet([{names}])")
    else:
        connection.register("no_rows", run.schema.empty_table())
        connection.execute(f"CREATE VIEW {run.table} AS SELECT * FROM no_rows")
    per_token = _PER_TOKEN[run.table]
    scalars = [name for name in run.schema.names if name not in (*per_token, "prompt_ids")]
    lists = [f"unnest({name}) AS {_TOKEN_NAMES.get(name, name)}" for name in per_token]
    selected = ", ".join(
        ['unnest(range(len(response_ids))) AS "position"', *lists]
        + [f'"{name}"' for name in scalars if name not in ("status", "error")]
    )
    there = f"SELECT {selected} FROM {run.table}"
    rows = f"{there} WHERE status = 'ok'" if run.table == "scores" else there
    connection.execute(f"CREATE VIEW tokens AS {rows}")
    if run.answers and store.exists(run.path(generations.CURVE)):
        name = _quoted(run.path(generations.CURVE))
        connection.execute(f"CREATE VIEW curve AS SELECT * FROM read_parquet({name})")
    connection.execute(f"CREATE VIEW rejected AS SELECT * FROM {run.table} WHERE status <> 'ok'")
    if store.is_local(run.uri):
        # A query sees the run's own files and nothing else on this machine.
        folder = _quoted(store.absolute(run.uri) + "/")
        connection.execute(f"SET allowed_directories = [{folder}]")
        connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
