"""Types of the metadata columns that a job carries along, fixed before the first row is scored."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray.config.run import MAX_ROW_BYTES
from dlogp_ray.corpus.columns import head
from dlogp_ray.corpus.files import CorpusFile
from dlogp_ray.corpus.mapping import PLAIN, RowMap
from dlogp_ray.corpus.reading import open_file
from dlogp_ray.errors import Refused, RowRejected
from dlogp_ray.tables.scores import CARRY_TYPES, RESERVED

_SAMPLE_ROWS = 1_000
_KNOWN = {"rollout_logp": "floats"}
"""What the sampler's log-probabilities are, whatever a file holds them as."""


def carry_types(
    carry: Sequence[str] | Mapping[str, str],
    first: CorpusFile,
    row_map: RowMap = PLAIN,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> dict[str, str]:
    """Name -> type ("string", "int64", "float64", "bool") of every carried column.

    Types that the config does not give are read off the schema of the first corpus file, or off
    its first 1,000 rows.

    Raises:
        Refused: A column is not there, holds values of several types, or has a name that the
            table uses.
    """
    taken = sorted(set(carry) & (RESERVED | {"prompt_ids", "position", "token_id"}))
    if taken:
        raise Refused(
            f"carry: the table has a column {taken[0]!r} of its own. Where that is yours, it comes "
            "along anyhow: leave it out; else give yours another name in the corpus"
        )
    if isinstance(carry, Mapping):
        return dict(carry)
    if not carry:
        return {}
    types = _types([name for name in carry if name not in _KNOWN], first, row_map, max_row_bytes)
    return {name: _KNOWN.get(name) or types[name] for name in carry}


def _types(
    carry: Sequence[str], first: CorpusFile, row_map: RowMap, max_row_bytes: int
) -> dict[str, str]:
    if first.format == "parquet" and row_map.by_name:
        return _from_schema(carry, first, row_map)
    records = head(first, max_row_bytes, _SAMPLE_ROWS)
    try:
        made = row_map.all_rows(records, first.uri)
        # Of each row what is carried alone: a row may take max_row_bytes.
        rows = [
            {name: row.get(name) for name in carry}
            for _, row in made
            if not isinstance(row, RowRejected)
        ]
    except (OSError, pa.ArrowException) as error:
        raise Refused(f"corpus {first.uri}: can't be read: {error}") from None
    return {name: _from_values(name, [row.get(name) for row in rows], first) for name in carry}


def _from_schema(carry: Sequence[str], file: CorpusFile, row_map: RowMap) -> dict[str, str]:
    try:
        with open_file(file.uri, file.entry) as raw:
            schema = pq.ParquetFile(raw).schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise Refused(f"corpus {file.uri}: not a readable Parquet file: {error}") from None
    types = {}
    for name in carry:
        theirs = row_map.label(name)
        if theirs not in schema.names:
            raise _missing(theirs, file)
        kind = schema.field(theirs).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        for ours, test in (
            ("bool", pa.types.is_boolean),
            ("int64", pa.types.is_integer),
            ("float64", pa.types.is_floating),
            ("string", _becomes_text),
        ):
            if test(kind):
                types[name] = ours
        if name not in types:
            raise Refused(
                f"carry: {name!r} is a {kind} in {file.uri}; expected booleans, integers, floats, "
                "text, or nested values, which are carried as JSON: cast it in the corpus"
            )
    return types


def _becomes_text(kind: pa.DataType) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(text or pa.types.is_null(kind) or pa.types.is_nested(kind))


def _from_values(name: str, values: list[Any], file: CorpusFile) -> str:
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        raise _missing(name, file)
    if kinds <= {bool}:
        return "bool"
    if kinds <= {int}:
        return "int64"
    if kinds <= {int, float}:
        return "float64"
    if kinds <= {str, list, dict}:
        return "string"
    raise Refused(
        f"carry: {name!r} holds values of several types in {file.uri} "
        f"({', '.join(sorted(kind.__name__ for kind in kinds))})"
    )


def _missing(name: str, file: CorpusFile) -> Refused:
    return Refused(
        f"carry: the first rows of {file.uri} have no column {name!r}; correct the name, or give "
        f"its type: carry: {{{name}: {' | '.join(CARRY_TYPES)}}}"
    )
