"""What a server's answer says. The key, which a server may send back, is masked before anything reads or keeps it.
Then the answer is read strictly: a body that is not what it should be is no reply, with a reason."""

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

from stages.config.blocks.endpoints import SHORTEST_KEY

MASK = "***"


class KeyMask:
    """Masks one key: as it is, in base64, in hexadecimal, and with characters escaped as JSON or URLs escape them."""

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
    """Return what every text with the key has of it, by where in three bytes it begins; also as in URLs' base64."""
    found = list[str]()
    for before, shared in ((0, 0), (1, 2), (2, 3)):  # bytes before the key, and characters that they share with it
        encoded = base64.b64encode(bytes(before) + key).decode().rstrip("=")
        whole = encoded[shared : -1 if (before + len(key)) % 3 else None]
        found += [whole, whole.translate({ord("+"): "-", ord("/"): "_"})]
    return [*dict.fromkeys(found)]


class NoReply(Exception):
    """A call gave nothing that can be used. `again`: another attempt may."""

    def __init__(self, reason: str, again: bool):
        super().__init__(reason)
        self.reason, self.again = reason, again


class Redirected(Exception):
    """A server sends whoever asks on, to `host`."""

    def __init__(self, status: int, host: str):
        super().__init__(host)
        self.status, self.host = status, host


@dataclass(frozen=True)
class Reply:
    """An answer: its text, how it ended (stop, length, refusal, or the server's word), its tokens where counted."""

    text: str
    finish_reason: str
    input_tokens: int | None = None
    output_tokens: int | None = None

    def tokens(self, most: tuple[int, int]) -> tuple[int, int]:
        """Return the tokens of the request and of the answer: `most` where the server counts none, or more."""
        counts = zip((self.input_tokens, self.output_tokens), most, strict=True)
        input_tokens, output_tokens = (limit if count is None else min(count, limit) for count, limit in counts)
        return input_tokens, output_tokens


def decode(content: bytes) -> str:
    """Return a body's text. JSON is UTF-8 (RFC 8259), whatever charset a server names.

    Raises:
        NoReply: for other bytes.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise NoReply("the body is not UTF-8", again=True) from error


def read(body: str) -> Reply:
    """The reply in the body of a chat completion. NaN and Infinity, which JSON does not have, are null.

    Raises:
        NoReply: where there is none in it.
    """
    try:
        content = json.loads(body, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise NoReply("the body is no JSON" if body.strip() else "the body is empty", again=True) from error
    try:
        choice = content["choices"][0]
        message, finish = choice["message"], choice["finish_reason"]
        refusal, text = message.get("refusal"), message.get("content")
    except (TypeError, LookupError, AttributeError) as error:
        raise NoReply("the body is no chat completion", again=True) from error
    usage = content.get("usage")
    tokens = [count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    if isinstance(refusal, str) and refusal:
        return Reply(whole(refusal), "refusal", *tokens)
    if finish == "content_filter":
        return Reply(whole(text) if isinstance(text, str) else "", finish, *tokens)
    if not isinstance(text, str) or not isinstance(finish, str):
        raise NoReply("the body is no chat completion", again=True)
    return Reply(whole(text), finish, *tokens)


def count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and value >= 0 else None


def whole(text: str) -> str:
    """The text without half surrogate pairs, which JSON may hold and no file can."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
