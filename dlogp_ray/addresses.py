"""Addresses in what is printed, logged and kept: none of them carries credentials."""

import re
from urllib.parse import unquote

# Of any link of a chain (simplecache::s3://…), and where a slash got lost on the way (a path has
# none twice). abfs://container@account names no secret.
_START = r"(?<!abfs)(?<!abfss)(:/{1,3}[ \t]*|(?<![\w:/])//)"
_PASSWORD = re.compile(rf"{_START}[^/\s?#'\"]*@")
# A key may have a slash, or what begins a query; host:9000/a@b is no password.
_PASSWORD_WITH_MORE = re.compile(rf"{_START}[^/\s?#'\":@\[]+:(?!\d+[/?#])[^\s'\"]*@")
_PARAMETER = re.compile(r"([?&;#])([^?&;#=\s'\"]+)=([^&;#\s'\"]+)")
# A signed address opens an object to whoever reads it.
_SECRET_NAME = re.compile(
    r"[\w.-]*(credential|token|signature|secret|passw|pwd|api-?_?key|access-?_?key|auth|session)"
    r"[\w.-]*|sig|key|code|pass|jwt|[\w.-]+key",
    re.IGNORECASE,
)
_OPEN_NAMES = {"versionid", "generation"}
_SECRET_VALUE = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w+/=%.~-]{20,}")
"""Whatever it is called."""
_HIDDEN = "***"


def without_credentials(text: str) -> str:
    """A text in which no address carries credentials: what is printed, logged or kept goes here."""
    hidden = _without(text)
    # Spelled with %3A and %40 they are the same; a text that has none so spelled is left as it is.
    spelled = unquote(hidden) if "%" in hidden else hidden
    said = _without(spelled)
    return hidden if said == spelled else said


def _without(text: str) -> str:
    for pattern in (_PASSWORD, _PASSWORD_WITH_MORE):
        text = pattern.sub(rf"\1{_HIDDEN}@", text)
    return _PARAMETER.sub(_hidden, text)


def carries_credentials(text: str) -> bool:
    """Whether an address in a text does."""
    return without_credentials(text) != text


def _hidden(match: re.Match[str]) -> str:
    before, name, value = match.groups()
    said = unquote(name)
    secret = _SECRET_NAME.fullmatch(said) or (
        said.lower() not in _OPEN_NAMES and _SECRET_VALUE.fullmatch(value)
    )
    return f"{before}{name}={_HIDDEN}" if secret else match[0]
