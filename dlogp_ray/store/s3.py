"""How S3 and what speaks like it are spoken to: time-outs, retries, pages, and what errors mean.

Endpoint and credentials come from the environment or the usual AWS files, in each process anew.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

PROTOCOLS = frozenset({"s3", "s3a"})

_SLACK_S = 10.0
_SERVERS_FAULT = 500
_NO_ADDRESS = ("Invalid endpoint", "Invalid IPv6 URL")
"""How the texts of botocore's and urllib's errors begin; they go on with what may be a secret."""
_WRONG = {
    "ConfigParseError",
    "InvalidRegionError",
    "NoRegionError",
    "ParamValidationError",
    "ProfileNotFound",
    "UnknownEndpointError",
}
"""botocore's errors of what was asked, or where."""
_SKEWED = ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture")
"""What servers say of a request that is signed with another time than theirs."""
_MOST_SKEW_S = 300.0
"""S3 allows 15 minutes; others less."""
_patient: ContextVar[bool] = ContextVar("patient", default=False)

CONFIG: dict[bool, dict[str, Any]] = {
    # For whoever waits for an answer: within two minutes there is one, or an error.
    False: {
        "connect_timeout": 10,
        "read_timeout": 20,
        "retries": {"mode": "standard", "total_max_attempts": 4},
    },
    # For units: an outage of some minutes is sat out.
    True: {
        "connect_timeout": 10,
        # An answer comes after the whole body: 64 MB at 1 MB/s.
        "read_timeout": 60,
        # Of what did not arrive, throttling and 5xx; up to 20 s between the last two attempts.
        "retries": {"mode": "standard", "total_max_attempts": 8},
    },
}
"""Whether it is patient -> botocore's own config."""


def longest_s(config: Mapping[str, Any]) -> float:
    """What a request takes, at most, that is never answered: all tries, and botocore's pauses.

    And somewhat more, for the last try's own time-out says more of what was waited for.
    """
    tries = config["retries"]["total_max_attempts"]
    pauses = sum(min(2.0**n, 20.0) for n in range(tries - 1))
    each = max(config["connect_timeout"], config["read_timeout"])
    return float(tries * each + pauses + _SLACK_S)


@contextmanager
def patience() -> Iterator[None]:
    """Within it, in this thread, a store is asked for as long as units are worth."""
    before = _patient.set(True)
    try:
        yield
    finally:
        _patient.reset(before)


def options(*, read_ahead: bool) -> dict[str, Any]:
    """Arguments of ``PatientS3``.

    Args:
        read_ahead: As ``objects.open_store``.
    """
    arguments: dict[str, Any] = {
        "use_listings_cache": False,  # other processes write
        "config_kwargs": CONFIG[_patient.get()],
    }
    return arguments if read_ahead else arguments | {"default_cache_type": "none"}


@contextmanager
def asked_now_and_then(ask: Callable[[], object], every_s: float = 10.0) -> Iterator[None]:
    """A store that other processes work with is asked here too: where it hangs, that is said."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(every_s):
            with suppress(Exception), patience():  # those processes meet it too, and report it
                ask()

    threading.Thread(target=go_on, daemon=True).start()
    try:
        yield
    finally:
        over.set()


ONE_REQUEST_BYTES = 5 * 2**30
"""What one PUT can hold. An object that is put in parts leaves them behind when its writer dies."""


def speaks(filesystem: Any) -> bool:
    """Whether an fsspec filesystem is s3fs."""
    names = filesystem.protocol
    return bool(PROTOCOLS & {names} if isinstance(names, str) else PROTOCOLS & set(names))


def status(error: BaseException) -> int | None:
    """The HTTP status that s3fs made this ``OSError`` of; None where there is none."""
    code: int | None = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return code


def may_be_done_later(error: BaseException) -> bool:
    """Whether it says that a store did not answer, or not now, whoever of its libraries says so.

    Credentials that are missing are for ``refusal``.
    """
    library = type(error).__module__.partition(".")[0]
    if library == "botocore":  # its own classes are no OSError: no connection for one
        return refusal(error) is None and not hasattr(error, "response")
    overloaded = (status(error) or 0) >= _SERVERS_FAULT
    return library in ("aiohttp", "urllib3") or isinstance(error, TimeoutError) or overloaded


def refusal(error: BaseException) -> str | None:
    """What the store refuses for good, for people; None where it may be done later."""
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return (
            "there are no credentials for it; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and "
            "AWS_ENDPOINT_URL for a server that is not Amazon's), or ~/.aws/credentials, on every "
            "node"
        )
    if isinstance(error, ValueError) and str(error).startswith(_NO_ADDRESS):
        return (
            "its endpoint (AWS_ENDPOINT_URL) is no address; expected https://host or "
            "http://host:port"
        )
    if name in _WRONG:
        return f"{error}; correct the address, or what the environment says of the store"
    code = _response(error).get("Error", {}).get("Code")
    if code == "NoSuchBucket":
        return "there is no such bucket; create it, or correct the address"
    if status(error) in (401, 403):
        if (theirs := _clock(error)) or code in _SKEWED:
            return (
                f"access is denied, for this machine's clock says {datetime.now(UTC):%c} UTC and "
                f"the store's {theirs or 'another time'}: set the clock, by NTP for one"
            )
        return (
            f"access is denied ({code}: {error}); check the credentials (environment, "
            "~/.aws/credentials) and what they allow"
        )
    return None


def _clock(error: BaseException) -> str | None:
    """What the server's clock says, where that is far from this machine's."""
    said = _response(error).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    with suppress(ValueError, TypeError):
        if abs((parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()) > _MOST_SKEW_S:
            return str(said)
    return None


def _response(error: BaseException) -> dict[str, Any]:
    """What the server said where s3fs made an ``OSError`` of it."""
    return getattr(error.__cause__, "response", None) or {}


def list_objects(filesystem: Any, path: str) -> Iterator[tuple[str, int, str]]:
    """The objects directly under a folder, asked for a thousand at a time: (key, bytes, etag)."""
    bucket, prefix, _ = filesystem.split_path(path)
    asked = {"Bucket": bucket, "Prefix": prefix and f"{prefix}/", "Delimiter": "/"}
    while True:
        page = filesystem.call_s3("list_objects_v2", **asked)
        for item in page.get("Contents", ()):
            yield item["Key"], item["Size"], item["ETag"].strip('"')
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]
