"""Who may reach the page: this machine, or whoever has the token."""

import ipaddress
import os
import secrets
import socket
from pathlib import Path
from urllib.parse import urlsplit

from stages.store.kept import sync


def is_loopback(host: str) -> bool:
    """Whether a name, or an address without brackets, can be no other machine's."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def called(host: str) -> str:
    """What a link calls a server that listens at `host`: by the machine's name, where that is all its addresses."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def name_in(host: str) -> str:
    """The name or address in a Host header, without its port; '' where it holds none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def token_in(folder: Path) -> str:
    """The token of a folder of journals, made once: a link that was handed out still leads here after a restart. No
    other user of this machine can read it."""
    path = folder / "token"
    if not path.exists():
        descriptor = os.open(draft := folder / "token.draft", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(24))
        draft.replace(path)
        sync(folder)
    return path.read_text(encoding="utf-8")
