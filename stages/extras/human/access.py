"""Access to the page: from this machine, or with the token."""

import ipaddress
import os
import re
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from stages.store.safe_files import NotRegular, draft_of, open_regular
from stages.store.sealed_json import move_aside, sync

TOKEN_BYTES = 24  # random bytes of a token, written as 32 characters
TOKEN = re.compile(rb"[A-Za-z0-9_-]{32,128}")


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
    if os.path.lexists(path):
        with suppress(NotRegular, PermissionError), os.fdopen(open_regular(path), "rb") as file:
            status, content = os.fstat(file.fileno()), file.read(1000).strip()
            is_private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
            if is_private and TOKEN.fullmatch(content):
                return content.decode()
        reason = (
            f"{path} is not a file of this user alone, with a token of 32 letters, digits, _ or -."
        )
        move_aside(path, f"{reason} Links with the old token no longer work; send the new link.")
    return make_token(path)


def make_token(path: Path) -> str:
    """Write a new token durably into a file that only this user can read, and return it."""
    token = secrets.token_urlsafe(TOKEN_BYTES)

    def private(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    with draft_of(path) as draft, open(draft, "x", encoding="utf-8", opener=private) as file:
        file.write(token)
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)
    return token
