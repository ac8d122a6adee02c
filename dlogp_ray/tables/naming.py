"""Which columns a query may mean, so that a view reads no others.

DuckDB reads every list that a view unnests, whether a query asks for it or not.
"""

import json
from collections.abc import Iterator
from typing import Any

import duckdb


def names_in(connection: duckdb.DuckDBPyConnection, query: str) -> set[str] | None:
    """Every name that stands in a query, in lower case, and more.

    Returns:
        None where it may mean columns that it does not name: ``*``, ``COLUMNS``, a natural join, a
        whole row, or a statement that DuckDB does not take apart.
    """
    ((text,),) = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    tree = json.loads(text)
    if tree.get("error"):
        return None
    nodes = list(nodes_of(tree))
    words = {value.lower() for node in nodes for value in _texts(node)}
    # A table's name in a column's place is a whole row.
    alone = {node["column_names"][0] for node in nodes if len(node.get("column_names", ())) == 1}
    tables = {name for node in nodes for name in _table_names(node)}
    anything = words & {"star", "natural"} or alone & tables
    return None if anything else words


def nodes_of(tree: Any) -> Iterator[dict[str, Any]]:
    """Each node of a query that DuckDB has taken apart, and what is below it."""
    if isinstance(tree, dict):
        yield tree
    for inner in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(inner, dict | list):
            yield from nodes_of(inner)


def _texts(node: dict[str, Any]) -> Iterator[str]:
    for value in node.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                yield item


def _table_names(node: dict[str, Any]) -> Iterator[str]:
    if node.get("type") in ("BASE_TABLE", "SUBQUERY"):
        yield from (str(node[key]) for key in ("alias", "table_name") if node.get(key))
