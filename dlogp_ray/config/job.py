"""What the configs of all jobs share: addresses, and errors that name the field."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from dlogp_ray.addresses import carries_credentials
from dlogp_ray.config.yaml_file import read_yaml
from dlogp_ray.errors import Refused

_ONE_SLASH = re.compile(r"([A-Za-z][\w+.-]+:)/(?!/)")


def check_address(uri: str) -> str:
    """An address as it came, where it is one that a job may keep.

    Raises:
        ValueError: It is empty, or carries credentials; they are not repeated.
    """
    if not uri.rpartition("://")[2]:
        raise ValueError(f"expected a path or URL, got {uri!r}, which names no folder or file")
    if carries_credentials(uri):
        raise ValueError(
            "the address carries credentials; take them out and set them in the environment"
        )
    if scheme := _ONE_SLASH.match(uri):
        raise ValueError(
            f"expected a path, or a URL, which has two slashes after {scheme[1]!r}; got one"
        )
    return uri


Uri = Annotated[str, AfterValidator(check_address)]


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def check_name(name: str) -> str:
    """A name that may be a folder's.

    Raises:
        ValueError: It may not.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: expected {_NAME.pattern}, got {name!r}")
    return name


def as_list(value: object) -> object:
    """A list of one where no list came."""
    return [value] if isinstance(value, str | dict) else value


RunOn = Literal["auto", "here", "ray"]
"""Where a job's work is done: in this process, through Ray, or in this process where that is
sooner."""


class JobConfig(BaseModel):
    """What the configs of all jobs share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_mapping(cls, values: object, *, source: str = "config") -> Self:
        """Check ``values``; every problem is named with its field and the value that came.

        Raises:
            Refused: A field is unknown, missing, of the wrong type, or contradicts another.
        """
        if not isinstance(values, dict):
            raise Refused(f"{source}: expected a mapping of fields, got {type(values).__name__}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = error.errors()
            # Where an item of a list is wrong, pydantic finds the list too short as well.
            inner = {one["loc"][:end] for one in problems for end in range(len(one["loc"]))}
            told = [one for one in problems if one["loc"] not in inner or not one["loc"]]
            lines = [_explain(problem, cls) for problem in told]
            raise Refused(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from None

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> Self:
        """Read a YAML file; ``overrides`` that are not None replace its fields.

        Raises:
            Refused: As ``read_yaml``, or it does not pass the checks.
        """
        values = read_yaml(path)
        if isinstance(values, dict):
            values |= {key: value for key, value in overrides.items() if value is not None}
        return cls.from_mapping(values, source=str(path))


def _explain(problem: Any, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = model
        parts: list[type[BaseModel]] = []
        for part in problem["loc"][:-1]:
            tagged = {_tag(one): one for one in parts}
            parts = list(_parts(known, part)) or parts
            known = tagged.get(part, next(_parts(known, part), known))
        meant = get_close_matches(str(problem["loc"][-1]), known.model_fields, n=1)
        hint = f"did you mean {meant[0]}? " if meant else ""
        return f"{where}: unknown field; {hint}the fields are {', '.join(known.model_fields)}"
    if problem["type"] == "missing":
        return f"{where}: is required and missing"
    text = problem["msg"].removeprefix("Value error, ")
    if not where or carries_credentials(repr(problem["input"])):
        return f"{where}: {text}".removeprefix(": ")
    return f"{where}: {text} (got {problem['input']!r})"


def _tag(model: type[BaseModel]) -> object:
    """What tells a model from others in its place: its own ``scheme``."""
    field = model.model_fields.get("scheme")
    return None if field is None else field.default


def _parts(model: type[BaseModel], name: object) -> Iterator[type[BaseModel]]:
    """The models within a field's annotation, for fields that have fields of their own."""
    left = [model.model_fields[name].annotation] if name in model.model_fields else []
    while left:
        kind = left.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
        left += get_args(kind)
