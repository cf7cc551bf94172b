"""The HTTP client under openai's: it follows no redirect, keeps no cookie, and reads no more of a reply than a chat
completion may have. Of a reply's headers the client sees `retry-after` alone."""

from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2
import openai

from stages.endpoints.reply import NoReply, Redirected

LONGEST_REPLY = 2_000_000  # bytes: thirty for each of 64,000 tokens
LONGEST_ERROR = 16_000  # bytes of an error's text that are read
IDENTITY = ("", "identity")


class Bounded(httpx2.AsyncByteStream):
    """The bytes of a reply as they come, `most` at most: a longer completion is no reply, a longer error is cut."""

    def __init__(self, stream: Any, most: int, is_error: bool):
        self.stream, self.most, self.is_error = stream, most, is_error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self.stream:
            size += len(chunk)
            if size > self.most and not self.is_error:
                raise NoReply(f"the reply has more than {self.most:,} bytes", again=False)
            yield chunk
            if size > self.most:
                return

    async def aclose(self) -> None:
        await self.stream.aclose()


async def bound(response: httpx2.Response) -> None:
    """Leave of a response, before its body is read, what may be read.

    Raises:
        Redirected: where the server sends the caller on.
        NoReply: where a completion is compressed: it would have any size once it is inflated.
    """
    headers, is_error = response.headers, response.status_code >= 400
    if response.has_redirect_location:
        raise Redirected(response.status_code, host_of(headers["location"]))
    if headers.get("content-encoding", "").strip().lower() not in IDENTITY and not is_error:
        raise NoReply("the reply is compressed, which the request rules out", again=False)
    # Without the others no body is inflated, and no charset picks a decoder.
    response.headers = httpx2.Headers([each for each in headers.raw if each[0].lower() == b"retry-after"])
    response.stream = Bounded(response.stream, LONGEST_ERROR if is_error else LONGEST_REPLY, is_error)


def host_of(location: str) -> str:
    """Return the host in a Location header; '' for a path, and for what is no address."""
    try:
        return httpx2.URL(location).host
    except httpx2.InvalidURL:
        return ""


def http_client() -> httpx2.AsyncClient:
    """Return the client for one endpoint. It uses the environment's proxies, as openai's own does."""
    return openai.DefaultAsyncHttpxClient(
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        event_hooks={"response": [bound]},
    )
