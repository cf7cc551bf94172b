"""Write settings as a shell and Hydra read them, for commands and for the ways out of errors."""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

NEEDS_NO_QUOTES = re.compile(r"(?!(true|false|null|nan|inf)$)[a-z_./][\w./@+-]*", re.A | re.I)
BEFORE_A_QUOTE = re.compile(r'(\\*)("|$)')
# characters that the key of an entry may only have behind a backslash
RESERVED = re.compile(r"[\\()\[\]{}:=,]")


def override(key: str, value: Any) -> str:
    """Return an argument as a shell and Hydra take it: `'data.file.columns={prompt: question}'`."""
    return shlex.quote(f"{key}={hydra_text(value)}")


def overrides(settings: Mapping[str, Any]) -> str:
    """Return several arguments, each as `override`."""
    return " ".join(override(key, value) for key, value in settings.items())


def hydra_text(value: Any) -> str:
    """Return a value as Hydra reads it in a command."""
    if isinstance(value, Mapping):
        entries = [f"{hydra_key(key)}: {hydra_text(each)}" for key, each in value.items()]
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(hydra_text, value))}]"
    if isinstance(value, str):
        return value if NEEDS_NO_QUOTES.fullmatch(value) else quoted(value)
    return json.dumps(value)


def hydra_key(key: Any) -> str:
    """Return the key of an entry, which Hydra does not read in quotes."""
    text = key if isinstance(key, str) else json.dumps(key)
    return RESERVED.sub(r"\\\g<0>", text)


def quoted(text: str) -> str:
    """Return a text in double quotes. To Hydra, a backslash is special before a quote alone."""

    def escape(found: re.Match[str]) -> str:
        before, quote = found.groups()
        return before * 2 + (r"\"" if quote else "")

    return f'"{BEFORE_A_QUOTE.sub(escape, text)}"'
