"""What the configs of all jobs share: addresses, and errors that name the field."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError

from dlogp_ray.addresses import carries_credentials
from dlogp_ray.config.explaining import explain, named, shown
from dlogp_ray.config.model import ConfigModel
from dlogp_ray.config.setting import set_fields
from dlogp_ray.config.yaml_file import read_yaml
from dlogp_ray.errors import Refused

_VARIABLE = re.compile(r"\$\{?\w+\}?(?=/|$)")
_ONE_SLASH = re.compile(r"([A-Za-z][\w+.-]+:)/(?!/)")


def check_address(uri: str) -> str:
    """An address that a job may keep; ``~`` is the home folder of whoever gives it.

    Raises:
        ValueError: It is empty, no path, or carries credentials; they are not repeated.
    """
    if not uri.rpartition("://")[2]:
        raise ValueError(f"expected a path or URL, got {uri!r}, which names no folder or file")
    if carries_credentials(uri):
        raise ValueError(
            "the address carries credentials; take them out and set them in the environment"
        )
    if "\0" in uri:
        raise ValueError("expected a path or URL, got one with a NUL byte")
    if variable := _VARIABLE.match(uri):
        raise ValueError(
            f"variables of the shell are not looked up in paths, and it begins with {variable[0]}; "
            "write the path out, or ~ for your home folder"
        )
    if scheme := _ONE_SLASH.match(uri):
        raise ValueError(
            f"expected a path, or a URL, which has two slashes after {scheme[1]!r}; got one"
        )
    return os.path.expanduser(uri)


def _spelled(value: object) -> object:
    """An address that Python has as a path."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Uri = Annotated[str, BeforeValidator(_spelled), AfterValidator(check_address)]


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
    return [value] if isinstance(value, str | dict | os.PathLike | BaseModel) else value


ONE_OR_MORE_TEXTS = BeforeValidator(as_list, json_schema_input_type=str | tuple[str, ...])


def on_or_off(value: object) -> object:
    """``on`` and ``off``, which YAML reads as true and false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


OnOff = Literal["auto", "on", "off"] | bool
"""As a file has it: YAML reads on and off as true and false."""
RunOn = Literal["auto", "here", "ray"]
"""Where a job's work is done: in this process, through Ray, or in this process where that is
sooner."""


def check_config(given: object, kind: type["JobConfig"]) -> None:
    """Check that a job was given its config.

    Raises:
        Refused: It was given something else.
    """
    if not isinstance(given, kind):
        raise Refused(
            f"expected a {kind.__name__}, got {named(given)}; {kind.__name__}.from_yaml(PATH) "
            "reads one from a file, and from_mapping(FIELDS) takes fields"
        )


class JobConfig(ConfigModel):
    """What the configs of all jobs share."""

    @classmethod
    def from_mapping(cls, values: object, *, source: str = "config") -> Self:
        """Check ``values``; every problem is named with its field and the value that came.

        Raises:
            Refused: A field is unknown, missing, of the wrong type, or contradicts another.
        """
        if not isinstance(values, dict):
            raise Refused(
                f"{source}: expected fields with values, as in corpus: rollouts/; got "
                f"{named(values)}"
            )
        config = cls.__new__(cls)
        config._fill(values, source)
        return config

    if not TYPE_CHECKING:  # to whom the arguments are the fields

        def __init__(self, *given: object, **values: Any) -> None:
            """Check the fields, as ``from_mapping``."""
            if given:
                raise Refused(
                    f"{type(self).__name__}: expected fields by their names, got "
                    f"{shown(given[0])}; {type(self).__name__}.from_yaml(PATH) reads a file"
                )
            self._fill(values, type(self).__name__)

    def _fill(self, values: dict[Any, Any], source: str) -> None:
        try:
            self.__pydantic_validator__.validate_python(values, self_instance=self)
        except ValidationError as error:
            lines = explain(error, type(self), values)
            raise Refused(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from None

    @classmethod
    def from_yaml(cls, path: str | Path, settings: Sequence[str] = (), **overrides: Any) -> Self:
        """Read a YAML file; ``overrides`` that are not None replace its fields.

        Args:
            path: Of the file.
            settings: ``FIELD=VALUE``, which replace its fields as well: VALUE is YAML, and FIELD
                may lead into another, as in ``policies.rl=checkpoints/rl``.
            overrides: Fields.

        Raises:
            Refused: As ``read_yaml``, or it does not pass the checks.
        """
        values = read_yaml(path)
        if isinstance(values, dict):
            values |= {key: value for key, value in overrides.items() if value is not None}
            set_fields(values, settings)
        return cls.from_mapping(values, source=str(path))
