"""Simulated annotators over HTTP, and a process that serves the page for people as the stage does:
`python -m tests.extras.human.asking FOLDER KEYS`, with keys of `label.human` as JSON. The answers to judge are in
FOLDER/texts.json, and the judgements are written to FOLDER/judgements.json."""

import http.client
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from stages.config.blocks.labels import HumanRuntime
from stages.config.installation import ROOT
from stages.extras.human import Human, server
from stages.extras.human.labeler import HumanLabeler
from tests.rows import pool, work_with_calls

ADDRESS = re.compile(r"at http://(\S+):(\d+)/")


class Person:
    """A person who answers by HTTP requests, without a browser."""

    def __init__(self, port: int, name: str, token: str = ""):
        self.port = port
        self.name = name
        self.token = token

    def send(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """Send a request, and return the status and the JSON of the response."""
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self.token}",
        } | headers
        content = body
        if not isinstance(body, bytes):
            content = json.dumps({"annotator": self.name} | body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with closing(connection):
            connection.request("POST", path, content, headers)
            answer = connection.getresponse()
            received = answer.read()
        return answer.status, json.loads(received) if received.startswith(b"{") else {}

    def next(self) -> dict[str, Any]:
        """Return the page's state, with the shown `text` of each answer."""
        status, state = self.send("/next", {})
        assert status == 200, state
        for answer in state["question"]["answers"] if state["question"] else ():
            answer["text"] = "".join(characters for _, characters in answer["spans"])
        return state

    def says(self, question: str, verdict: str, **more: Any) -> tuple[int, dict[str, Any]]:
        body = {
            "question": question,
            "verdict": verdict,
            "reasons": [],
            "comment": "",
            "seconds": 1.5,
        }
        return self.send("/answer", body | more)


def kept_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a person's journal, without truncated lines."""
    lines = (folder / "cache" / "calls" / "people" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


class Asking:
    """A process that serves the page at `port`."""

    def __init__(self, folder: Path, port: int = 0, **keys: Any):
        keys = {"answers": 2, "comparisons": 1, "port": port} | keys
        command = [sys.executable, "-m", "tests.extras.human.asking", str(folder), json.dumps(keys)]
        self.folder = folder
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.log = ""
        self.port = 0
        for line in self.process.stdout or ():
            self.log += line
            if match := ADDRESS.search(line):
                self.port = int(match[2])
                break

    def judged(self) -> dict[str, Any]:
        """Wait until the process ends, and return its judgements and figures."""
        assert self.process.wait(120) == 0, (self.process.stderr or sys.stderr).read()
        return json.loads((self.folder / "judgements.json").read_text())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def asking(folder: Path, *texts: list[str], **keys: Any) -> Iterator[Asking]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.json").write_text(json.dumps(texts))
    server = Asking(folder, **keys)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def somebody(
    monkeypatch: pytest.MonkeyPatch, choose: Callable[[dict[str, Any]], str]
) -> Iterator[list[int]]:
    """Let Ann answer all questions of the page that this process will serve, by `choose`. Yield the server's ports."""
    ports = list[int]()
    create = server.socket.create_server

    def listening(*args: Any, **options: Any) -> Any:
        listener = create(*args, **options)
        ports.append(listener.getsockname()[1])
        return listener

    def judging() -> None:
        while not ports:
            time.sleep(0.02)
        person = Person(ports[0], "ann")
        while question := person.next()["question"]:
            person.says(question["id"], choose(question))

    monkeypatch.setattr(server, "GRACE", 0.1)
    monkeypatch.setattr(server.socket, "create_server", listening)
    ann = threading.Thread(target=judging, daemon=True)
    ann.start()
    yield ports
    ann.join()


def main(folder: Path, keys: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    runtime = HumanRuntime(keys.pop("host", "127.0.0.1"), keys.pop("port"))
    human = Human(**keys, runtime=runtime)
    out = work_with_calls(folder)
    people_pool = pool(*json.loads((folder / "texts.json").read_text()))
    judgements = [vars(j) for j in HumanLabeler(human, out).judge_all(people_pool)]
    (folder / "judgements.json").write_text(
        json.dumps({"judgements": judgements, "figures": out.endpoint_calls["label.human"]})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
