"""Access to the page for people, and time limits: real requests to a real server."""

import http.client
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import product
from pathlib import Path

import pytest

from stages.extras.human import Human, server
from stages.extras.human.access import TOKEN, load_token
from stages.extras.human.labeler import draw_questions
from stages.extras.human.session import Session
from tests.extras.human.asking import Person, asking
from tests.rows import pool

GIVEN = [[f"poor {i}", f"good {i}"] for i in range(3)]
GOOD = "T" * 32


def send(port: int, method: str, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def attempts(token: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield requests without the token, or with a slightly different one."""
    wrong = ["", token[:-1], f"{token}x", token.swapcase(), "x" * len(token), "null"]
    for each, path in product(wrong, ["/", "/next", "/answer", "/undo", "/token", "/../token"]):
        for method in ("GET", "POST"):
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {each}"}
            yield method, path, headers
        yield "GET", f"{path}?token={each}", {}
    yield "POST", "/next", {"Authorization": f"Basic {token}"}


@pytest.mark.extended
def test_without_the_token_nothing_is_answered_at_the_outer_address(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "calls" / "people"
    with asking(tmp_path, *GIVEN, host="0.0.0.0") as running:
        token = (folder / "token").read_text()
        body = json.dumps({"annotator": "ann"}).encode()
        for method, path, headers in attempts(token):
            status, reply = send(running.port, method, path, body, **headers)
            assert status == 401, (method, path, headers)
            assert b"good" not in reply and token.encode() not in reply
        assert not [*folder.glob("*.jsonl")]
        link = next(line for line in running.process.stderr or () if "?token=" in line)
        assert link.rstrip().endswith(f"/?token={token}")
        assert token not in running.log, "no log has the token"
        assert send(running.port, "GET", f"/?token={token}", b"")[0] == 200
        person = Person(running.port, "ann", token)
        while question := person.next()["question"]:
            assert person.says(question["id"], "a")[0] == 200
        assert len(running.judged()["judgements"]) == 3


def link_to(path: Path, target: Path) -> None:
    target.write_text(GOOD)
    target.chmod(0o600)
    path.symlink_to(target)


def written(content: bytes, mode: int = 0o600) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)
        path.chmod(mode)

    return write


def of_another_user(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    written(GOOD.encode())(path)
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(written(b""), id="empty"),
        pytest.param(written(GOOD[:-1].encode()), id="short"),
        pytest.param(written(b"\xff" * 40), id="not UTF-8"),
        pytest.param(written(GOOD.encode(), 0o644), id="readable by others"),
        pytest.param(of_another_user, id="of another user"),
        pytest.param(lambda path: link_to(path, path.with_name("elsewhere")), id="a link"),
        pytest.param(Path.mkdir, id="a folder"),
        pytest.param(lambda path: os.mkfifo(path, 0o600), id="a FIFO"),
    ],
)
def test_a_token_file_that_others_could_know_gives_way_to_a_new_token(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    damage(path)
    token = load_token(tmp_path)
    assert TOKEN.fullmatch(token.encode()) and len({*token}) > 8 and token != GOOD
    status = path.lstat()
    assert stat.S_ISREG(status.st_mode) and path.read_text() == token
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, os.geteuid())
    assert load_token(tmp_path) == token
    assert len(caplog.records) == 1, "the second call does not warn"


def test_a_valid_token_stays_and_a_first_one_is_made_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first_token = load_token(tmp_path)
    assert load_token(tmp_path) == first_token and not caplog.records
    (tmp_path / "token").write_text(f"{GOOD}\n")  # with a final newline, as editors write
    assert load_token(tmp_path) == GOOD and not caplog.records


@contextmanager
def served(folder: Path, monkeypatch: pytest.MonkeyPatch, most: int = 128) -> Iterator[int]:
    """Serve a page in this process with this limit on connections, and yield its port."""
    monkeypatch.setattr(server, "MAX_CONNECTIONS", most)
    session = Session(draw_questions(pool(*GIVEN), Human()), [], folder)
    page = server.Page(session, Human(), None, server.Progress(3, "", ""))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=page.server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            page.server.should_exit = True
            thread.join()


PATIENCE = 30.0  # seconds that a test waits for an event


def answered_at_last(port: int) -> bool:
    """Return whether the page answers once it has noticed that other connections are closed."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException):
            return bool(Person(port, "ann").next()["question"])
    return False


POST = b"POST /next HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(b"", id="silent"),
        pytest.param(POST + b"Content-Length: 60000\r\n\r\n", id="a body without end"),
    ],
)
def test_a_slow_connection_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    with (
        served(tmp_path, monkeypatch) as port,
        socket.create_connection(("127.0.0.1", port)) as slow,
    ):
        slow.sendall(begin)
        assert Person(port, "ann").next()["question"], "the server still answers other clients"


def test_a_connection_has_one_request_and_there_are_so_many_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, monkeypatch, most=5) as port:
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert (answer.read() != b"", answer.getheader("Connection")) == (True, "close")
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        time.sleep(0.1)
        assert send(port, "GET", "/", b"")[0] == 503
        for connection in connections:
            connection.close()
        assert answered_at_last(port), "after the connections close, the server answers again"


def test_what_is_too_large_is_refused_before_it_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, monkeypatch) as port:
        for announced in (b"Content-Length: 999999999", b"Transfer-Encoding: chunked"):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
                connection.sendall(POST + announced + b"\r\n\r\n")
                with suppress(ConnectionError):  # the server closes the connection meanwhile
                    for _ in range(20):
                        connection.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
                reply = b""
                with suppress(ConnectionError):
                    reply = connection.recv(1000)
            assert reply[9:12] in (b"", b"413")
        assert Person(port, "ann").send("/answer", b" " * 70_000)[0] == 413
