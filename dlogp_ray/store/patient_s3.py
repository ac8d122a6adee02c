"""s3fs with one layer that tries again, and that says what it waits for.

s3fs tries a request again that botocore has tried as often as it may, and what reads a body tries
both again: 45 requests to a server that accepts and never answers. Here botocore tries a request
again, and s3fs only what is cut off in a body.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS

from dlogp_ray.errors import Unanswered
from dlogp_ray.events import SAID_EVERY_S, SAID_FIRST_S, tell
from dlogp_ray.store.s3 import longest_s, may_be_done_later

_BODY_TRIES = 4
_SILENCE = (TimeoutError, ReadTimeoutError, ConnectTimeoutError)
_in_a_request: ContextVar[bool] = ContextVar("in_a_request", default=False)


class PatientS3(S3FileSystem):  # type: ignore[misc]
    """``S3FileSystem`` that does so."""

    @property
    def retries(self) -> int:
        """How often s3fs tries: a request once, the reading of a body again."""
        return 1 if _in_a_request.get() else _BODY_TRIES

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        parts = kwargs.get("Bucket"), kwargs.get("Key") or kwargs.get("Prefix")
        address = f"s3://{'/'.join(part for part in parts if part)}"
        loop = asyncio.get_running_loop()
        started = loop.time()
        client = await self.set_session()
        client.meta.events.register("before-send.s3", _sent_at_once, unique_id="dlogp_ray")
        before = _in_a_request.set(True)
        try:
            # What aiohttp sends has no time-out of its own.
            async with asyncio.timeout(longest_s(self.config_kwargs)):
                with _said(loop, address, started):
                    return await super()._call_s3(method, *akwarglist, **kwargs)
        except Exception as error:
            if not (isinstance(error, S3_RETRYABLE_ERRORS) or may_be_done_later(error)):
                raise
            cause = str(error) or "not even what was sent was taken"
            what = "no answer" if isinstance(error, _SILENCE) else "not done"
            seconds = loop.time() - started
            # Of another class, so that nobody tries all of it again.
            raise Unanswered(f"{address}: {what} in {seconds:.0f} s: {cause}") from error
        finally:
            _in_a_request.reset(before)

    call_s3 = sync_wrapper(_call_s3)


def _sent_at_once(request: Any, **_: Any) -> None:
    """A body is sent without asking before: aiohttp waits for that answer without a time-out."""
    request.headers.pop("Expect", None)


@contextmanager
def _said(loop: asyncio.AbstractEventLoop, address: str, started: float) -> Iterator[None]:
    handle: list[asyncio.TimerHandle] = []

    def say() -> None:
        seconds = loop.time() - started
        text = f"waiting for {address}: no answer for {seconds:.0f} s"
        tell("waiting for the store", text, address=address, seconds=round(seconds))
        handle[:] = [loop.call_later(SAID_EVERY_S, say)]

    handle.append(loop.call_later(SAID_FIRST_S, say))
    try:
        yield
    finally:
        handle[0].cancel()
