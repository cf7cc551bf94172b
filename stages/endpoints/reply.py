"""Parsing of a server's reply, with any API key masked first. A malformed body raises NoReply with a reason."""

import base64
import json
import re
from dataclasses import dataclass

from stages.config.blocks.endpoints import SHORTEST_KEY

MASK = "***"


class KeyMask:
    """A mask for one API key: verbatim, in base64, in hexadecimal, and with JSON or URL escapes."""

    def __init__(self, key: str):
        forms = (
            [key, key.encode().hex(), *encode_base64(key.encode())]
            if len(key) >= SHORTEST_KEY
            else []
        )
        self.pattern = (
            re.compile("|".join("".join(map(escaped_pattern, form)) for form in forms))
            if forms
            else None
        )

    def __call__(self, text: str) -> str:
        return self.pattern.sub(MASK, text) if self.pattern else text


def escaped_pattern(character: str) -> str:
    """Return a regular expression for an ASCII character and its escapes."""
    code = "".join(f"[{digit.lower()}{digit.upper()}]" for digit in f"{ord(character):02x}")
    plain = re.escape(character)
    return rf"(?:{plain}|\\{plain}|\\u00{code}|%{code})"


def encode_base64(key: bytes) -> list[str]:
    """Return the base64 characters that encode only the key, for each of its offsets modulo 3; also URL-safe."""
    encodings = list[str]()
    # bytes before the key, and characters that also encode them
    for before, shared in ((0, 0), (1, 2), (2, 3)):
        encoded = base64.b64encode(bytes(before) + key).decode().rstrip("=")
        whole = encoded[shared : -1 if (before + len(key)) % 3 else None]
        encodings += [whole, whole.translate({ord("+"): "-", ord("/"): "_"})]
    return [*dict.fromkeys(encodings)]


class NoReply(Exception):
    """The error of a call without a usable reply. `retryable`: another attempt may succeed. `refuses_request`: the
    server may answer a request with other fields."""

    def __init__(self, reason: str, retryable: bool, refuses_request: bool = False):
        super().__init__(reason)
        self.reason, self.retryable = reason, retryable
        self.refuses_request = refuses_request


class Redirected(Exception):
    """The error of a server that redirects a request to `host`."""

    def __init__(self, status: int, host: str):
        super().__init__(host)
        self.status, self.host = status, host


@dataclass(frozen=True)
class Reply:
    """A reply: its text, its finish reason (stop, length, refusal or the server's word), and counted tokens."""

    text: str
    finish_reason: str
    input_tokens: int | None = None
    output_tokens: int | None = None

    def tokens(self, bounds: tuple[int, int]) -> tuple[int, int]:
        """Return the tokens of the request and of the answer, at most `bounds`; `bounds` if the server counts none."""
        counts = zip((self.input_tokens, self.output_tokens), bounds, strict=True)
        input_tokens, output_tokens = (
            limit if count is None else min(count, limit) for count, limit in counts
        )
        return input_tokens, output_tokens


def parse_reply(body: str) -> Reply:
    """Return the reply of a chat completion, with null for NaN and Infinity. Raise NoReply for another body."""
    try:
        content = json.loads(body, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise NoReply(
            "the body is no JSON" if body.strip() else "the body is empty", retryable=True
        ) from error
    try:
        choice = content["choices"][0]
        message, finish = choice["message"], choice["finish_reason"]
        refusal, text = message.get("refusal"), message.get("content")
    except (TypeError, LookupError, AttributeError) as error:
        raise NoReply("the body is no chat completion", retryable=True) from error
    usage = content.get("usage")
    counts = [
        isinstance(usage, dict) and usage.get(name)
        for name in ("prompt_tokens", "completion_tokens")
    ]
    tokens = [count if type(count) is int and count >= 0 else None for count in counts]
    if isinstance(refusal, str) and refusal:
        return Reply(replace_surrogates(refusal), "refusal", *tokens)
    # a model that thinks up to its limit has no text yet
    if finish in ("content_filter", "length"):
        return Reply(replace_surrogates(text) if isinstance(text, str) else "", finish, *tokens)
    if not isinstance(text, str) or not isinstance(finish, str):
        raise NoReply("the body is no chat completion", retryable=True)
    return Reply(replace_surrogates(text), finish, *tokens)


def replace_surrogates(text: str) -> str:
    """Return the text with lone surrogates replaced, which JSON may contain and files cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
