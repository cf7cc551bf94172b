"""A small OpenAI-compatible server, whose answers are a function of the request, and a proxy that fails some calls."""

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

FAULTS = ("429", "500", "hang", "cut", "reset", "malformed", "empty", "no completion")

Request = dict[str, Any]
S = TypeVar("S", bound="Server")


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """A server on 127.0.0.1 at any free port. Its threads end with the test."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        super().__init__(("127.0.0.1", 0), handler)
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect, which some tests provoke."""


class Model(Server):
    """A model that answers `says(request)` after a delay, and up to `late` seconds more, so that answers overtake each
    other. It records requests, keys and headers."""

    def __init__(
        self,
        says: Callable[[Request], str],
        seconds: float = 0.0,
        status: int = 200,
        late: float = 0.0,
        **message: Any,
    ):
        super().__init__(Answering)
        self.says = says
        self.seconds = seconds
        self.status = status
        self.late = late
        self.message = message
        self.refusal = "Incorrect API key provided: {key}"  # with another status than 200
        self.refused_requests: int | None = None  # so many first requests; None: all
        self.retry_after = "3600"
        self.requests = list[Request]()
        self.keys = list[str | None]()
        self.headers = list[list[tuple[str, str]]]()

    def completion(self, request: Request) -> dict[str, Any]:
        text = self.says(request)
        message = {"role": "assistant", "content": text, **self.message}
        counted = sum(len(m["content"].split()) for m in request["messages"])
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": counted, "completion_tokens": len(text.split()) + 1},
        }


class Answering(Quiet):
    server: Model

    def do_POST(self) -> None:
        request = json.loads(self.body())
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.append(self.headers["Authorization"])
            self.server.headers.append(self.headers.items())
        time.sleep(self.server.seconds + random.uniform(0, self.server.late))
        refused = self.server.refused_requests
        is_refused = refused is None or len(self.server.requests) <= refused
        if self.server.status != 200 and is_refused:
            message = self.server.refusal.format(key=self.headers["Authorization"])
            self.answer(
                self.server.status,
                json.dumps({"error": {"message": message}}).encode(),
                Retry_After=self.server.retry_after,
            )
        else:
            self.answer(200, json.dumps(self.server.completion(request)).encode())


class Proxy(Server):
    """A proxy that forwards calls to a model, and fails a share of them in the ways of FAULTS, from a fixed seed."""

    def __init__(self, model: Model, share: float, hang: float, faults: tuple[str, ...] = FAULTS):
        super().__init__(Failing)
        self.model = model
        self.share = share
        self.hang = hang
        self.faults = faults
        self.rng = random.Random(0)
        self.failed = Counter[str]()

    def fault(self) -> str:
        with self.lock:
            fault = self.rng.choice(self.faults) if self.rng.random() < self.share else ""
            self.failed.update([fault] if fault else [])
        return fault


class Failing(Quiet):
    server: Proxy

    def do_POST(self) -> None:
        body = self.body()
        fault = self.server.fault()
        if fault == "429":
            return self.answer(429, b'{"error": {"message": "slow down"}}', Retry_After="0.01")
        if fault == "400":
            return self.answer(400, b'{"error": {"message": "too long"}}')
        if fault == "500":
            return self.answer(500, b"<html>oops</html>")
        if fault == "hang":
            return time.sleep(self.server.hang)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        upstream = HTTPConnection("127.0.0.1", self.server.model.server_port)
        headers = {name: self.headers[name] for name in ("Content-Type", "Authorization")}
        upstream.request("POST", self.path, body, headers)
        content = upstream.getresponse().read()
        upstream.close()
        if fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        spoilt = {
            "malformed": content[: len(content) // 2],
            "empty": b"",
            "no completion": b'{"choices": []}',
        }
        return self.answer(200, spoilt.get(fault, content))


@contextmanager
def running(server: S) -> Iterator[S]:
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
