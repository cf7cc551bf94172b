"""Bounds of connections to the page. Somebody who sends slowly, or never ends, cannot keep others from it for long."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

LASTS = 30.0  # seconds from the opening of a connection to its end, whatever has come by then
MOST = 128  # connections at once


class Connection(H11Protocol):
    """A connection to the page, which carries one request. One connection too many is closed at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline = self.loop.call_later(LASTS, transport.abort)
        if len(self.connections) > MOST:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.deadline.cancel()
