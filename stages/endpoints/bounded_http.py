"""The HTTP client that the openai package uses. It follows no redirects, stores no cookies, and limits the size of
replies. The openai package sees no reply header except `retry-after`."""

from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2
import openai

from stages.endpoints.reply import NoReply, Redirected

LONGEST_REPLY = 2_000_000  # bytes, about 30 for each of 64,000 tokens
LONGEST_ERROR = 16_000  # bytes of an error body that are read
IDENTITY = ("", "identity")


class BoundedStream(httpx2.AsyncByteStream):
    """The bytes of a reply, at most `limit`. A longer completion raises NoReply; a longer error is truncated."""

    def __init__(self, stream: Any, limit: int, is_error: bool):
        self.stream, self.limit, self.is_error = stream, limit, is_error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self.stream:
            size += len(chunk)
            if size > self.limit and not self.is_error:
                raise NoReply(f"the reply has more than {self.limit:,} bytes", retryable=False)
            yield chunk
            if size > self.limit:
                return

    async def aclose(self) -> None:
        await self.stream.aclose()


async def bound_response(response: httpx2.Response) -> None:
    """Remove a response's headers and limit its size, before its body is read.
    Raise Redirected if the server redirects the request. NoReply: if a completion is compressed, because its inflated
    size has no limit."""
    headers, is_error = response.headers, response.status_code >= 400
    if response.has_redirect_location:
        raise Redirected(response.status_code, host_of(headers["location"]))
    if headers.get("content-encoding", "").strip().lower() not in IDENTITY and not is_error:
        raise NoReply("the reply is compressed, which the request rules out", retryable=False)
    # Without the other headers, httpx neither inflates the body nor decodes it by a charset.
    response.headers = httpx2.Headers(
        [header for header in headers.raw if header[0].lower() == b"retry-after"]
    )
    response.stream = BoundedStream(
        response.stream, LONGEST_ERROR if is_error else LONGEST_REPLY, is_error
    )


def host_of(location: str) -> str:
    """Return the host in a Location header, or '' for a path or an invalid address."""
    try:
        return httpx2.URL(location).host
    except httpx2.InvalidURL:
        return ""


def http_client() -> httpx2.AsyncClient:
    """Return the client for one endpoint. Like openai's default client, it uses the environment's proxies."""
    return openai.DefaultAsyncHttpxClient(
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        event_hooks={"response": [bound_response]},
    )
