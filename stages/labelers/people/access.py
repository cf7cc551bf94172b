"""Access to the page: from this machine, or with the token. Limits on connections stop slow clients."""

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
from stages.store.sealed_json import move_aside, sync

TOKEN_BYTES = 24  # random bytes of a token, written as 32 characters
TOKEN = re.compile(rb"[A-Za-z0-9_-]{32,128}")
CONNECTION_SECONDS = 30.0  # after this time a connection is closed, even in the middle of a request
MAX_CONNECTIONS = 128  # open at the same time


def is_loopback(host: str) -> bool:
    """Return True if a host name, or an address without brackets, always means this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def link_host(host: str) -> str:
    """Return the host part of the link to a server that listens at `host`; the machine's name for all addresses."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def host_name(host: str) -> str:
    """Return the name or address in a Host header, without the port; '' if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def load_token(folder: Path) -> str:
    """Return the token stored in a folder of journals, so that links remain valid after a restart. If the token file
    is invalid or accessible to other users, the file is set aside with a warning, and a new token is made."""
    path = folder / "token"
    try:
        return read_token(path)
    except FileNotFoundError:
        pass
    except (ValueError, NotRegular, PermissionError) as error:
        reason = error if isinstance(error, ValueError) else f"{path} is not a regular file of this user."
        move_aside(path, f"{reason} Links with the old token no longer work; send the new link.")
    return make_token(path)


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        ValueError: if the file belongs to another user, others can read or write it, or it does not have a token.
        NotRegular, PermissionError: if it is not a regular file, or cannot be opened."""
    with os.fdopen(open_regular(path), "rb") as file:
        status, content = os.fstat(file.fileno()), file.read(1000).strip()
    if status.st_uid != os.geteuid():
        raise ValueError(f"{path} belongs to another user.")
    if status.st_mode & 0o077:
        raise ValueError(f"{path} can be read or written by other users.")
    if not TOKEN.fullmatch(content):
        raise ValueError(f"{path} does not have a valid token: at least 32 letters, digits, _ or -.")
    return content.decode()


def make_token(path: Path) -> str:
    """Write a new token durably into a file that only this user can read, and return it."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    descriptor, draft = tempfile.mkstemp(prefix=".token-", suffix=".draft", dir=path.parent)  # creates mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(token)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync(path.parent)
    return token


class Connection(H11Protocol):
    """A connection to the page, for one request. A connection over the limit is closed at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline = self.loop.call_later(CONNECTION_SECONDS, transport.abort)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.deadline.cancel()
