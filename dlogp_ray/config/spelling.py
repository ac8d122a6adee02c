"""Schemes as a command line spells them."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from dlogp_ray.config.explaining import in_words
from dlogp_ray.config.schemes import SCHEMES
from dlogp_ray.errors import Refused


def spelled_schemes(spelled: Sequence[str]) -> list[dict[str, object]]:
    """Schemes as they were spelled: ``NAME`` or ``NAME:PARAMETER=VALUE,...``; ``none`` is None.

    Raises:
        Refused: A scheme or a parameter is unknown, or a parameter is missing or no number.
    """
    return [_scheme(scheme) for scheme in spelled]


def spellings() -> list[str]:
    """How each scheme is spelled, with the defaults of its parameters."""
    return [_spelling(name) for name in SCHEMES]


def _spelling(name: str) -> str:
    parameters = ",".join(
        f"{parameter}={'…' if field.is_required() else _as_text(field.default)}"
        for parameter, field in SCHEMES[name].model_fields.items()
        if parameter != "scheme"
    )
    return f"{name}:{parameters}" if parameters else name


def _scheme(spelled: str) -> dict[str, object]:
    name, _, settings = spelled.partition(":")
    if name not in SCHEMES:
        begins = next(
            (known for known in SCHEMES if spelled.startswith((f"{known},", f"{known}="))), ""
        )
        colon = f"; a colon stands behind the name, as in {_spelling(begins)}" if begins else ""
        raise Refused(f"--scheme {name}: expected one of {', '.join(SCHEMES)}{colon}")
    scheme: dict[str, object] = {"scheme": name}
    for setting in filter(None, settings.split(",")):
        parameter, equals, value = setting.partition("=")
        if not equals:
            raise Refused(f"--scheme {spelled}: expected NAME:PARAMETER=VALUE, got {setting}")
        if parameter in scheme:
            raise Refused(
                f"--scheme {spelled}: {parameter} stands there twice; leave it there once"
            )
        scheme[parameter] = None if value == "none" else value
    try:
        SCHEMES[name].model_validate(scheme)
    except ValidationError as error:
        problems = "; ".join(_in_words(problem) for problem in error.errors())
        raise Refused(
            f"--scheme {spelled}: {problems}; expected {_spelling(name)}"
            + (" (… is to be given)" if "…" in _spelling(name) else "")
        ) from None
    return scheme


def _in_words(problem: Mapping[str, Any]) -> str:
    where = ".".join(map(str, problem["loc"]))
    special = {"missing": f"{where} is missing", "extra_forbidden": f"it has no {where}"}
    told = f"{where}: {in_words(problem)}" if where else in_words(problem)
    return special.get(problem["type"], told)


def _as_text(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
