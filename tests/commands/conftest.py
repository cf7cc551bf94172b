"""A stand-in for the Hugging Face hub, for tests of exports."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

Request = tuple[str, str | None, bytes]  # path, authorization, body


@pytest.fixture
def hub() -> Iterator[tuple[str, list[Request]]]:
    """The address of a hub on this machine, and the requests that it received."""
    received: list[Request] = []

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, self.headers["authorization"], body))
            reply: dict[str, object] = {"url": f"{address}/someone/something"}
            if self.path.endswith("/preupload/main"):
                files = [file["path"] for file in json.loads(body)["files"]]
                reply = {
                    "files": [
                        {"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            elif self.path.endswith("/commit/main"):
                reply = {
                    "commitUrl": f"{address}/someone/something/commit/{'0' * 40}",
                    "commitOid": "0" * 40,
                }
            self._reply(200, reply)

        def do_GET(self) -> None:
            self._reply(404, {})

        def _reply(self, status: int, reply: dict[str, object]) -> None:
            content = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield address, received
    server.shutdown()
