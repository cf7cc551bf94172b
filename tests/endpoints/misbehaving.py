"""A judge's server that misbehaves in one of WAYS. It writes raw bytes to a socket, which no library would send."""

import base64
import json
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from tests.endpoints.servers import Quiet, Server

BLOCK = bytes(1 << 16)
GIGABYTE = 1 << 30
VERDICT = "Both help.\nVerdict: A"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class Misbehaving(Server):
    """A server that answers every request with the bytes of one way, which gets the request's API key."""

    def __init__(self, way: "Way"):
        super().__init__(Answering)
        self.way = way
        self.n_requests = 0
        self.sent = 0


class Answering(Quiet):
    server: Misbehaving

    def do_POST(self) -> None:
        self.body()
        with self.server.lock:
            self.server.n_requests += 1
        self.close_connection = True
        for content in self.server.way(self.headers["Authorization"].removeprefix("Bearer ")):
            self.connection.sendall(content)  # raises OSError after the client has disconnected
            self.server.sent += len(content)


Way = Callable[[str], Iterator[bytes]]


def completion(
    text: Any = VERDICT, usage: Any = None, finish: Any = "stop", message: Any = (), **more: Any
) -> str:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **dict(message)},
        "finish_reason": finish,
    }
    return json.dumps(
        {"choices": [choice], "usage": usage or {"prompt_tokens": 5, "completion_tokens": 6}} | more
    )


def plain(body: str | bytes, head: bytes = OK, *headers: str) -> Iterator[bytes]:
    """Return a reply with the right content length."""
    content = body.encode() if isinstance(body, str) else body
    lines = "".join(f"{each}\r\n" for each in (*headers, f"Content-Length: {len(content)}"))
    yield head + lines.encode("latin-1") + b"\r\n" + content


def error(status: int, body: str | bytes, *headers: str) -> Iterator[bytes]:
    return plain(body, f"HTTP/1.1 {status} Oops\r\n".encode(), *headers)


def usage(**counts: Any) -> Way:
    """Return a reply whose usage has these texts as numbers."""
    body = completion().replace('"prompt_tokens": 5', f'"prompt_tokens": {counts["prompt"]}')
    return lambda key: plain(
        body.replace('"completion_tokens": 6', f'"completion_tokens": {counts["answer"]}')
    )


def flood(head: bytes, block: bytes = BLOCK) -> Way:
    """Yield a head and 1 GiB of blocks."""

    def sent(key: str) -> Iterator[bytes]:
        yield head
        for _ in range(GIGABYTE // len(block)):
            yield block

    return sent


def drip(content: bytes) -> Way:
    """Yield a byte every 50 ms."""

    def sent(key: str) -> Iterator[bytes]:
        for i in range(len(content)):
            yield content[i : i + 1]
            time.sleep(0.05)

    return sent


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def bomb(wbits: int = 31) -> bytes:
    """Return 1 MB that inflates to 1 GiB."""
    packer = zlib.compressobj(9, wbits=wbits)
    head = packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * 64


def compressed(encoding: str, content: Callable[[], bytes], status: int = 200) -> Way:
    return lambda key: plain(
        content(), f"HTTP/1.1 {status} X\r\nContent-Encoding: {encoding}\r\n".encode()
    )


def redirected(status: int, *headers: str) -> Way:
    return lambda key: plain("", f"HTTP/1.1 {status} Moved\r\n".encode(), *headers)


def echoed(form: Callable[[str], str]) -> Way:
    return lambda key: plain(completion(f"You sent {form(key)}.\n{VERDICT}"))


def escaped(key: str) -> Iterator[bytes]:
    marker = "0".join("KEYMARK")
    yield from plain(
        completion(f"{marker}\n{VERDICT}").replace(marker, "".join(f"\\u{ord(c):04X}" for c in key))
    )


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LONG = "no answer in 2 s"
BROKE = "the connection broke"
WRONG = "the body is no chat completion"
LARGE = "the reply has more than"
PACKED = "the reply is compressed"
PRESENT = None  # a judgement is present, so there is no reason
WAYS: dict[str, tuple[Way, Any]] = {
    # Replies of 1 GiB unless the client stops reading.
    "plain": (flood(OK + b"Content-Length: %d\r\n\r\n" % GIGABYTE), LARGE),
    "without a length": (flood(OK + b"\r\n"), LARGE),
    "chunked": (flood(CHUNKED, chunk(BLOCK)), LARGE),
    "gzip": (compressed("gzip", bomb), PACKED),
    "an error": (flood(b"HTTP/1.1 500 Oops\r\nContent-Length: %d\r\n\r\n" % GIGABYTE), "HTTP 500"),
    "a header": (flood(OK + b"X-Long: ", b"a" * (1 << 16)), BROKE),
    # Slow replies.
    "a dripping body": (drip(OK + b"Content-Length: 4000\r\n\r\n" + b" " * 4000), LONG),
    # Wrong numbers.
    "usage of 400 digits": (usage(prompt="9" * 400, answer="9" * 400), PRESENT),
    "usage below 0": (usage(prompt=-5, answer=-(10**15)), PRESENT),
    "usage in words": (usage(prompt='"5"', answer="true"), PRESENT),
    # Wrong texts.
    "a charset of two bytes": (
        lambda key: plain(
            completion().encode("utf-16"), OK, "Content-Type: application/json; charset=utf-16"
        ),
        "the body is not UTF-8",
    ),
    # Wrong HTTP.
    "another host": (
        redirected(302, "Location: http://evil.example/v1"),
        "redirects to 'evil.example'",
    ),
    "nothing": (lambda key: iter([b"HTTP/1.1 204 No Content\r\n\r\n"]), "the body is empty"),
    "cookies": (
        lambda key: plain(completion(), OK, *[f"Set-Cookie: a{i}={'b' * 900}" for i in range(90)]),
        PRESENT,
    ),
    "a rest for ever": (
        lambda key: error(429, "x", "Retry-After: inf"),
        "asks for a pause of 86400 s",
    ),
    # The API key in replies.
    "the key": (echoed(str), PRESENT),
    "the key in base64": (
        echoed(lambda key: base64.b64encode(f"Bearer {key}".encode()).decode()),
        PRESENT,
    ),
    "the key in a URL": (echoed(lambda key: urllib.parse.quote(key, safe="")), PRESENT),
    "the key in escapes": (escaped, PRESENT),
    "the key as a refusal": (
        lambda key: plain(completion(None, message={"refusal": f"Not {key}"})),
        "is a refusal",
    ),
    "the key in headers": (
        lambda key: plain(
            completion(),
            f"HTTP/1.1 200 {key}\r\n".encode(),
            f"X-Key: {key}",
            f"Set-Cookie: k={key}",
        ),
        PRESENT,
    ),
    "the key in an error": (
        lambda key: error(400, f"No such key: {key}", f"Retry-After: {key}"),
        "HTTP 400",
    ),
}
