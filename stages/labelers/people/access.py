"""Who may reach the page, this machine or whoever has the token, and for how long: somebody who sends slowly, or never
ends, cannot keep others from it."""

import asyncio
import ipaddress
import os
import re
import secrets
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from uvicorn.protocols.http.h11_impl import H11Protocol

from stages.store.safe_files import NotRegular, open_regular
from stages.store.sealed_json import set_aside, sync

TOKEN_BYTES = 24  # of a token, which are 32 characters
TOKEN = re.compile(rb"[A-Za-z0-9_-]{32,128}")
CONNECTION_SECONDS = 30.0  # seconds from the opening of a connection to its end, whatever has come by then
MAX_CONNECTIONS = 128  # connections at once


def is_loopback(host: str) -> bool:
    """Whether a name, or an address without brackets, can be no other machine's."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def link_host(host: str) -> str:
    """What a link calls a server that listens at `host`: by the machine's name, where that is all its addresses."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def host_name(host: str) -> str:
    """The name or address in a Host header, without its port; '' where it holds none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def load_token(folder: Path) -> str:
    """Return the token of a folder of journals: a link that was handed out still leads here after a restart. A file
    that holds no token that only this user could know is set aside, the user is warned, and a new token is made."""
    path = folder / "token"
    try:
        return read_token(path)
    except FileNotFoundError:
        pass
    except (ValueError, NotRegular, PermissionError) as error:
        reason = error if isinstance(error, ValueError) else f"{path} is not a file of this user's."
        set_aside(path, f"{reason} Links that were handed out no longer work.")
    return make_token(path)


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        ValueError: if the file is another user's, others can read or write it, or it holds no token.
        NotRegular: if it is not a regular file; PermissionError.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        status, content = os.fstat(file.fileno()), file.read(1000).strip()
    if status.st_uid != os.geteuid():
        raise ValueError(f"{path} belongs to another user.")
    if status.st_mode & 0o077:
        raise ValueError(f"{path} can be read or written by other users.")
    if not TOKEN.fullmatch(content):
        raise ValueError(f"{path} holds no token, which is 32 letters, digits, _ or - at least.")
    return content.decode()


def make_token(path: Path) -> str:
    """Write a new token, whole and on the disk when this returns, into a file that only this user can read."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    descriptor, draft = tempfile.mkstemp(prefix=".token-", suffix=".draft", dir=path.parent)  # has the mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(token)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync(path.parent)
    return token


class Connection(H11Protocol):
    """A connection to the page, which carries one request. One connection too many is closed at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline = self.loop.call_later(CONNECTION_SECONDS, transport.abort)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.deadline.cancel()
