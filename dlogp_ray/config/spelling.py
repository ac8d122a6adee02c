"""Schemes as a command line spells them."""

from collections.abc import Mapping, Sequence

from dlogp_ray.config.schemes import SCHEMES
from dlogp_ray.errors import Refused


def spelled_schemes(spelled: Sequence[str], given: Mapping[str, object]) -> list[dict[str, object]]:
    """Schemes as they were spelled, with the parameters that options give.

    Args:
        spelled: ``NAME`` or ``NAME:PARAMETER=VALUE,...``; the value ``none`` is None.
        given: Option -> value, each of the one scheme that has such a parameter.

    Raises:
        Refused: A scheme is unknown, or an option belongs to none of them or to several.
    """
    schemes: list[dict[str, object]] = []
    for scheme in spelled:
        name, _, settings = scheme.partition(":")
        if name not in SCHEMES:
            raise Refused(f"--scheme {name}: expected one of {', '.join(SCHEMES)}")
        schemes.append({"scheme": name})
        for setting in filter(None, settings.split(",")):
            parameter, equals, value = setting.partition("=")
            if not equals:
                raise Refused(f"--scheme {scheme}: expected NAME:PARAMETER=VALUE, got {setting}")
            schemes[-1][parameter] = _or_none(value)
    for option, number in given.items():
        owners = [s for s in schemes if option in SCHEMES[str(s["scheme"])].model_fields]
        if len(owners) != 1:
            which = "none of the schemes has" if not owners else "several of the schemes have"
            raise Refused(
                f"--{option.replace('_', '-')}: {which} it; give it as in --scheme "
                f"{spelled[0].partition(':')[0]}:PARAMETER=VALUE"
            )
        owners[0][option] = _or_none(number)
    return schemes


def _or_none(value: object) -> object:
    return None if value == "none" else value
