"""A key that a server sends back is masked in what comes from the server, before anything reads or keeps it."""

import base64
import re

from stages.config.blocks.endpoints import SHORTEST_KEY

MASK = "***"


class KeyMask:
    """Masks one key: as it is, in base64, in hexadecimal, and with any of its characters escaped as JSON or URLs
    escape them."""

    def __init__(self, key: str):
        found = [key, key.encode().hex(), *in_base64(key.encode())] if len(key) >= SHORTEST_KEY else []
        self.pattern = re.compile("|".join("".join(map(any_form, each)) for each in found)) if found else None

    def __call__(self, text: str) -> str:
        return self.pattern.sub(MASK, text) if self.pattern else text


def any_form(character: str) -> str:
    """Return the pattern of an ASCII character and its escapes."""
    code = "".join(f"[{digit.lower()}{digit.upper()}]" for digit in f"{ord(character):02x}")
    plain = re.escape(character)
    return rf"(?:{plain}|\\{plain}|\\u00{code}|%{code})"


def in_base64(key: bytes) -> list[str]:
    """Return what is the same of the key in every text that holds it, by where in three bytes it begins; also as URLs
    spell base64."""
    found = list[str]()
    for before, shared in ((0, 0), (1, 2), (2, 3)):  # bytes before the key, and characters that they share with it
        encoded = base64.b64encode(bytes(before) + key).decode().rstrip("=")
        whole = encoded[shared : -1 if (before + len(key)) % 3 else None]
        found += [whole, whole.translate({ord("+"): "-", ord("/"): "_"})]
    return [*dict.fromkeys(found)]
