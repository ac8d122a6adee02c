"""A YAML file as plain values, read within bounds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dlogp_ray.errors import Refused

_MOST_BYTES = 2**20
_MOST_VALUES = 100_000
"""With each alias written out: a few lines of them can stand for billions."""
_MOST_DEPTH = 100
_OF_ROWS = (".jsonl", ".ndjson", ".parquet", ".gz", ".zst", ".csv")
_HINTS = {
    "'\\t'": "a tab: YAML is indented with spaces",
    "mapping values are not allowed": "a field begins where none can: is it indented like those "
    "around it, has the line before its colon, and has a text with ': ' in it quotes?",
    "expected <block end>": "is the line indented like those around it, and does no quote end too "
    "early?",
    "unexpected end of stream": "a quote is not closed",
    "expected ',' or": "a bracket is not closed before this line",
    "cannot start any token": "a text that begins with this wants quotes",
    "unhashable key": "a text that begins with { wants quotes",
    "undefined alias": "a text that begins with * wants quotes",
    "constructor for the tag": "a text that begins with ! wants quotes",
    "another document": "--- begins a second one; a job is one",
}
"""What PyYAML says of a file -> what people mostly did."""


def read_yaml(path: str | Path) -> Any:
    """What the file holds.

    Raises:
        Refused: It is missing, is not YAML, or is more than a job file can be.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise Refused(
            f"config file {path}: {error.strerror}; give the path of a YAML file"
        ) from None
    if len(data) > _MOST_BYTES:
        raise Refused(f"config file {path}: expected at most {_MOST_BYTES:,} bytes of YAML")
    if str(path).endswith(_OF_ROWS) or data.startswith(b"PAR1"):
        raise Refused(
            f"config file {path}: it is a file of rows, not a job; name it in a YAML file, as in "
            f"corpus: {path}"
        )
    try:
        root = yaml.compose(data.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        values = _values(root, {}, ())
        if values > _MOST_VALUES:
            raise Refused(
                f"config file {path}: with its aliases it has more than {_MOST_VALUES:,} values"
            )
        return yaml.safe_load(data)
    except RecursionError:
        raise Refused(f"config file {path}: it is nested deeper than YAML can be read") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Refused(
            f"config file {path}, line {line}: expected UTF-8, got the byte "
            f"0x{data[error.start]:02x}; save it as UTF-8"
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # of a number that is too long
        cause = str(error)
        # Without the line itself, which str() quotes: credentials may stand in it.
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            cause = f"line {error.problem_mark.line + 1}: {error.problem}{_hint(error)}"
        raise Refused(f"config file {path} is not valid YAML: {cause}") from None


def _hint(error: yaml.MarkedYAMLError) -> str:
    """What people mostly did where YAML's parser says this."""
    problem = error.problem or ""
    return next((f" ({hint})" for said, hint in _HINTS.items() if said in problem), "")


def _values(node: Any, counted: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values there are at and below a node, each alias written out.

    Raises:
        YAMLError: It holds itself.
        RecursionError: It is nested too deep.
    """
    if id(node) in above:
        raise yaml.YAMLError("an alias stands for what it stands in")
    if len(above) > _MOST_DEPTH:
        raise RecursionError
    if id(node) not in counted:
        inner = (_values(below, counted, (*above, id(node))) for below in _below(node))
        counted[id(node)] = 1 + sum(inner)
    return counted[id(node)]


def _below(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        names = set[str]()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in names:  # else the last one counts, without a word
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value} stands there twice", problem_mark=key.start_mark
                    )
                names.add(key.value)
            yield from (key, value)
