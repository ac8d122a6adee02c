"""SQL over a run: DuckDB views on its objects, nothing copied and nothing written.

scores        one row a sample and policy, response-aligned lists
generations   of an intervene job: one row an answer
tokens        one row a response token
rejected      rows of either whose status is not ok, with the error
sparsity      of a score run: one row a figure of every sparsity analysis, by `analysis`;
              sparsity_histograms, sparsity_shifted, ...: its other tables
weights       of a score run: one row a sample of every sealed weights table, by `name`; of such a
              table itself, its rows
curve         of a sealed intervene job: one row an intervention
"""

import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import duckdb

from dlogp_ray import store
from dlogp_ray.errors import Damaged, Refused
from dlogp_ray.status import Status
from dlogp_ray.tables.derived import (
    CURVE,
    CURVE_RECORD,
    analyses,
    analysis_tables,
    read_derived,
    weights_tables,
)
from dlogp_ray.tables.kinds import KINDS, Beside, Kind
from dlogp_ray.tables.naming import names_in
from dlogp_ray.tables.source import source_hash
from dlogp_ray.tables.stored import StoredRun

_ONE_QUERY = (
    "expected one query that returns rows, as in SELECT count(*) FROM tokens: a run is read-only "
    "(`dlogp query … --format csv --out FILE` writes rows to a file)"
)
_CANT_READ = "Failed to read file"
"""How DuckDB says what it finds in a Parquet file."""


def connect(uri: str) -> duckdb.DuckDBPyConnection:
    """An in-memory database that can read the store of ``uri``."""
    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = false")
    # What a query does not hold in memory goes there, and it may read there: so no folder that
    # anyone else has. By default it is .tmp where the process stands.
    spill = str(Path(tempfile.gettempdir(), f"dlogp-ray-{uuid.uuid4().hex}"))
    connection.execute(f"SET temp_directory = {_quoted(spill)}")
    # These show where whoever asks is at home; nothing there is read.
    for setting in ("home_directory", "secret_directory", "extension_directory"):
        connection.execute(f"SET {setting} = '/nowhere'")
    if not store.is_local(uri):
        connection.register_filesystem(store.open_store(uri, read_ahead=False)[0])
    return connection


def query_run(run: StoredRun, query: str) -> Any:
    """Run ``query`` over the views of ``run``; a DuckDB relation.

    Raises:
        Refused: DuckDB refuses it.
    """
    return connected_query(run, query)[1]


def connected_query(run: StoredRun, query: str) -> tuple[duckdb.DuckDBPyConnection, Any]:
    """The same with its connection, by which it can be interrupted."""
    connection = confined(run, query)
    try:
        # COPY, ATTACH and CREATE could write, even over the run's own objects.
        statements = connection.extract_statements(query)
        selects = [statement.type for statement in statements] == [duckdb.StatementType.SELECT]
        relation = connection.sql(query) if selects else None
        if relation is None:
            raise Refused(_ONE_QUERY if query.strip() else f"the query is empty; {_ONE_QUERY}")
        return connection, relation
    except duckdb.PermissionException as error:
        raise Refused(f"the query failed: {error}; SQL sees the run's views alone") from None
    except (duckdb.CatalogException, duckdb.BinderException) as error:
        # DuckDB's own guesses are names of its own tables, or far from what was meant.
        said = _GUESSES.sub("", str(error)).rstrip()
        raise Refused(
            f"the query failed: {said}\n{_remedy(connection, run, query, said)}"
        ) from None
    except duckdb.Error as error:
        raise Refused(f"the query failed: {error}") from None


def views_of(kind: Kind, columns: Sequence[str]) -> dict[str, Sequence[str]]:
    """Views that every run of a kind has, and their columns, those of its table given."""
    tokens = [*_unnested(kind), *_of_rows(kind, columns)]
    return {kind.table: columns, "tokens": tokens, "rejected": columns}


_GUESSES = re.compile(r"\n(Did you mean|Candidate bindings).*")
_UNKNOWN = re.compile(r'Referenced column "([^"]+)" not found')


def _remedy(connection: duckdb.DuckDBPyConnection, run: StoredRun, query: str, said: str) -> str:
    """What may be asked instead, or done first."""
    views = _names(connection)
    words = set(re.findall(r"\w+", query.lower()))
    for beside in run.kind.beside:
        view, command = MADE_BY[beside]
        if view not in views and any(word.startswith(view) for word in words):
            return f"There is no view {view} yet; {command.format(uri=run.uri)} makes it"
    for other in KINDS.values():
        for name in (other.table, *(MADE_BY[beside][0] for beside in other.beside)):
            if name not in views and name in words:
                of = f"{name} is a view of a run of `dlogp {other.job}`"
                return f"{of}; this one has {', '.join(views)}"
    # A view is made with those columns alone that the query may mean.
    whole = views_of(run.kind, run.schema.names)
    if unknown := _UNKNOWN.search(said):
        known = {column for columns in whole.values() for column in columns}
        if near := get_close_matches(unknown[1], known, n=1):
            return f"Did you mean {near[0]}?"
        if f'"{unknown[1]}"' in query:
            return f"Text wants single quotes: '{unknown[1]}'"
    described = [
        f"{view} has the columns {', '.join(whole.get(view) or connection.view(view).columns)}"
        for view in views
        if view in words
    ]
    return "\n".join([f"There are the views {', '.join(views)}", *described])


def confined(run: StoredRun, query: str) -> duckdb.DuckDBPyConnection:
    """A database with the views of ``run`` that ``query`` needs, which reads nothing else.

    Raises:
        Damaged: An object is missing, another one, or can't be read.
    """
    connection = connect(run.uri)
    try:
        _create_views(connection, run, names_in(connection, query))
    except duckdb.Error as error:
        raise Damaged(
            f"run {run.uri}: an object is missing or can't be read: {error}. `dlogp score` with "
            "the run's job names it, and says what to do"
        ) from None
    return connection


@contextmanager
def rows_read(run: StoredRun) -> Iterator[None]:
    """What DuckDB raises while the rows of a query are read, as errors that say what to do.

    Raises:
        Refused: It is the query's own doing.
        Damaged: An object can't be read.
    """
    try:
        yield
    except (RuntimeError, duckdb.InterruptException) as error:
        if "interrupt" not in str(error).lower():
            raise
        raise KeyboardInterrupt from None  # which DuckDB has taken
    except duckdb.Error as error:
        if not _of_reading(error):
            raise Refused(f"the query failed: {error}") from None
        raise Damaged(
            f"the query failed while it read {run.uri}: {error}\n"
            f"`dlogp verify {run.uri}` names the object that is damaged"
        ) from None


def _of_reading(error: duckdb.Error) -> bool:
    """Whether it is said of a file that DuckDB reads; all else it says of a query."""
    # What its Parquet reader finds in a file has no class of its own, or that of a bad argument.
    kinds = (duckdb.IOException, duckdb.SerializationException, duckdb.InternalException)
    return isinstance(error, kinds) or type(error) is duckdb.Error or _CANT_READ in str(error)


def _names(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    return sorted(name for (name,) in rows)


def _create_views(
    connection: duckdb.DuckDBPyConnection, run: StoredRun, named: set[str] | None
) -> None:
    table, objects = run.kind.table, run.objects()
    if objects:
        names = ", ".join(_quoted(part.uri) for part in objects)
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet([{names}])")
    else:
        connection.register("no_rows", run.schema.empty_table())
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM no_rows")
    connection.execute(f"CREATE VIEW tokens AS {_tokens(run, named)}")
    for beside in run.kind.beside:
        _CREATE[beside](connection, run, named)
    connection.execute(
        f"CREATE VIEW rejected AS SELECT * FROM {table} WHERE status <> '{Status.OK}'"
    )
    # A query sees the run's own files and nothing else, on this machine or in its store.
    filesystem, path = store.open_store(run.uri)
    spelled = {store.absolute(run.uri), str(filesystem.unstrip_protocol(path))}
    folders = ", ".join(_quoted(f"{folder}/") for folder in spelled)
    connection.execute(f"SET allowed_directories = [{folders}]")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _create_sparsity(
    connection: duckdb.DuckDBPyConnection, run: StoredRun, named: set[str] | None
) -> None:
    """A view of each table that a sparsity analysis has, over all analyses."""
    there = analyses(run)
    if named is None or any(name.startswith("sparsity") for name in named):
        for analysis, tables in there.items():
            analysis_tables(run, analysis, tables)
    uris: dict[str, list[str]] = {}
    for analysis, tables in there.items():
        for table in tables:
            uri = run.path(f"sparsity/{analysis}/{table}.parquet")
            uris.setdefault(table, []).append(_quoted(uri))
    for table, of_table in uris.items():
        view = "sparsity" if table == "figures" else f"sparsity_{table}"
        connection.execute(
            f"CREATE VIEW {view} AS SELECT split_part(filename, '/', -2) AS analysis, * EXCLUDE "
            f"filename FROM read_parquet([{', '.join(of_table)}], union_by_name = true, "
            "filename = true)"
        )


def _create_weights(
    connection: duckdb.DuckDBPyConnection, run: StoredRun, named: set[str] | None
) -> None:
    """A view over all sealed weights tables, where there are any."""
    # Only where it may be asked for: a damaged table is no damage to the others.
    if named is not None and "weights" not in named:
        return
    scores = source_hash(run) if run.sealed else None
    there = weights_tables(run)
    for table in there.values():
        if scores not in (None, table.info.fingerprint.get("scores")):
            raise Damaged(
                f"weights table {table.uri} was made from other rows than the run has that it lies "
                f"in. {table.remedy}"
            )
    tables = [
        f"SELECT {_quoted(name)} AS name, * FROM read_parquet([{uris}])"
        for name, table in there.items()
        if (uris := ", ".join(_quoted(part.uri) for part in table.objects()))
    ]
    if tables:
        connection.execute(f"CREATE VIEW weights AS {' UNION ALL '.join(tables)}")


def _create_curve(
    connection: duckdb.DuckDBPyConnection, run: StoredRun, named: set[str] | None
) -> None:
    """A view of the curve of a sealed run."""
    if not store.exists(run.path(CURVE)):
        return
    if (named is None or "curve" in named) and store.exists(run.path(CURVE_RECORD)):
        again = "`dlogp intervene` with the run's job makes it again"
        read_derived(run, run.uri, CURVE_RECORD, ["curve"], again=again)
    name = _quoted(run.path(CURVE))
    connection.execute(f"CREATE VIEW curve AS SELECT * FROM read_parquet({name})")


MADE_BY: Mapping[Beside, tuple[str, str]] = {
    "analyses": ("sparsity", "`dlogp sparsity {uri}`"),
    "weights": ("weights", "`dlogp reweight {uri} --scheme NAME`"),
    "curve": ("curve", "`dlogp intervene`, as it seals the run,"),
}
"""What lies beside a table -> the first of its views, and what makes it."""
_CREATE: Mapping[Beside, Callable[..., None]] = {
    "analyses": _create_sparsity,
    "weights": _create_weights,
    "curve": _create_curve,
}


def _tokens(run: StoredRun, named: set[str] | None) -> str:
    """One row a token, with the columns that may be asked for.

    What is unnested is read, so that names that no query has stay out. The mask is always there:
    a list that was not computed is null, and gives no rows by itself.
    """
    kind = run.kind
    always = kind.renamed.get(kind.always, kind.always)
    columns = [
        f'unnest({values}) AS "{name}"'
        for name, values in _unnested(kind).items()
        if named is None or name in named or name == always
    ]
    columns += [f'"{name}"' for name in _of_rows(kind, run.schema.names)]
    there = f"SELECT {', '.join(columns)} FROM {kind.table}"
    return there if kind.rejected_have_tokens else f"{there} WHERE status = '{Status.OK}'"


def _unnested(kind: Kind) -> dict[str, str]:
    """Column of the view ``tokens`` -> the list that it has a value a token of."""
    lists = {kind.renamed.get(name, name): name for name in kind.per_token}
    return {"position": f"range(len({kind.always}))"} | lists


def _of_rows(kind: Kind, columns: Sequence[str]) -> list[str]:
    """Columns of the view ``tokens`` that repeat the row's."""
    apart = (*kind.per_token, "prompt_ids", "status", "error")
    return [name for name in columns if name not in apart]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
