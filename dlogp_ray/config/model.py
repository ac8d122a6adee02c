"""What all parts of a config are: frozen, of known fields, and true is no number."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dlogp_ray.errors import Refused


class ConfigModel(BaseModel):
    """A part of a config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: object) -> object:
        """YAML's ``yes`` is no 1, for which pydantic takes it."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name) if isinstance(value, bool) else None
            kinds = _kinds(field.annotation) if field else set()
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"{name}: expected a number, got {str(value).lower()}")
        return values

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse, in plain words.

        Raises:
            Refused: It is always.
        """
        try:
            super().__setattr__(name, value)
        except ValidationError:
            raise Refused(
                f"{name}: a {type(self).__name__} does not change; "
                f"model_copy(update={{{name!r}: …}}) makes another one"
            ) from None


def _kinds(annotation: Any) -> set[Any]:
    """The types that a value may have, those within its lists apart."""
    origin = getattr(annotation, "__origin__", None)
    if annotation in (int, float, bool) or origin in (tuple, list, dict):
        return {origin or annotation}
    return set[Any]().union(*map(_kinds, get_args(annotation)))
