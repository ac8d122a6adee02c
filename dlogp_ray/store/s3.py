"""How S3 and what speaks like it are spoken to: time-outs, retries, pages, and what errors mean.

Endpoint and credentials come from the environment or the usual AWS files, in each process anew.
"""

from collections.abc import Iterator, Mapping
from typing import Any

PROTOCOLS = frozenset({"s3", "s3a"})

OPTIONS: Mapping[str, Any] = {
    "use_listings_cache": False,  # other processes write
    "config_kwargs": {
        "connect_timeout": 10,
        # An answer comes after the whole body: 64 MB at 1 MB/s.
        "read_timeout": 60,
        # Of what did not arrive, throttling and 5xx; up to 20 s between the last two attempts.
        "retries": {"mode": "standard", "max_attempts": 8},
    },
}
"""Arguments of ``s3fs.S3FileSystem``."""

ONE_REQUEST_BYTES = 5 * 2**30
"""What one PUT can hold. An object that is put in parts leaves them behind when its writer dies."""


def speaks(filesystem: Any) -> bool:
    """Whether an fsspec filesystem is s3fs."""
    names = filesystem.protocol
    return bool(PROTOCOLS & {names} if isinstance(names, str) else PROTOCOLS & set(names))


def status(error: BaseException) -> int | None:
    """The HTTP status that s3fs made this ``OSError`` of; None where there is none."""
    found: int | None = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return found


def is_from_client(error: BaseException) -> bool:
    """Whether it is of botocore's own classes, which are no ``OSError``: no connection for one."""
    return type(error).__module__ == "botocore.exceptions"


def refusal(error: BaseException) -> str | None:
    """What the store refuses for good, for people; None where it may be done later."""
    name = type(error).__name__
    if is_from_client(error) and name in ("NoCredentialsError", "PartialCredentialsError"):
        return (
            "there are no credentials for it; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and "
            "AWS_ENDPOINT_URL for a server that is not Amazon's), or ~/.aws/credentials, on every "
            "node"
        )
    code = _response(error).get("Error", {}).get("Code")
    if code == "NoSuchBucket":
        return "there is no such bucket; create it, or correct the address"
    if status(error) in (401, 403):
        return (
            f"access is denied ({code}: {error}); check the credentials (environment, "
            "~/.aws/credentials) and what they allow"
        )
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
        for found in page.get("Contents", ()):
            yield found["Key"], found["Size"], found["ETag"].strip('"')
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]
