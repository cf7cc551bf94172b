"""The server of the page for people, with three requests: next question, answer, undo.

Unwanted requests are rejected. The Host header stops websites that rebind their domain name to this machine (DNS
rebinding). The Origin header and the content type stop forms of other sites. From other machines every request needs
the token, even for the page. The page loads no other resources."""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stages.config.blocks.labels import HumanPage
from stages.config.errors import UserError
from stages.extras.human import answer_rows
from stages.extras.human.access import host_name, is_loopback, link_host, load_token
from stages.extras.human.markup import shown_text, spans
from stages.extras.human.session import NAME, NAME_RULE, Answer, Refused, Session
from stages.labelers.questions import Question
from stages.store import locks, plugins
from stages.store.sealed_json import WRONG_SHAPE, require_keys
from stages.store.workspace import Progress, StageDir

HTML = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
LARGEST = 1 << 16  # bytes of a request's body at most
MAX_CONNECTIONS = 128  # open at the same time
GRACE = 5.0  # seconds after the last answer in which it can be undone
LAST = 60.0  # and in which another person's page, which still shows a question, can send its answer
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
Body = Mapping[str, Any]


def collect_answers(questions: Sequence[Question], cfg: HumanPage, out: StageDir) -> Session:
    """Return the session of the questions once all are answered, on the page or by a file. Adds its metrics to `out`.
    Raise UserError if the file of answers is unusable, or the server cannot listen at its address. KeyboardInterrupt:
    if the server is stopped earlier."""
    folder = out.call_folder / "people"
    # The lock admits one process at a time, because two processes would not see each other's answers.
    lock = folder / "people.lock"
    with locks.hold_lock(lock, "the page for people", "used", out.allowance):
        session = Session([*questions], cfg.reasons, folder, cfg.block)
        answered = plugins.user_path(cfg.answered) if cfg.answered else None
        if answered:
            out.inform(answer_rows.read(answered, session))
        answer_rows.write(session, out, answered)
        try:
            if not session.complete:
                out.inform(f"A file for those who judge elsewhere: {out / answer_rows.FILE}")
                serve(session, cfg, out)
        finally:
            answer_rows.write(session, out)
    out.endpoint_calls["label.human"] = session.figures()
    return session


def serve(session: Session, cfg: HumanPage, out: StageDir) -> None:
    """Serve the page until every question has its answers.

    Raises:
        UserError: if the server cannot listen at its address, or a journal is not a file.
        LimitReached: if the time of the command is up.
        OSError: if an answer could not be saved.
        KeyboardInterrupt: if the server is stopped earlier."""
    host, port = cfg.runtime.host, cfg.runtime.port
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        reason = f"cannot listen at {host}, port {port}: {error.strerror}"
        key = f"{cfg.block}.runtime"
        raise UserError(f"{key}: {reason}. Set {key}.port=0 to get a free port.") from error
    # Without this option each reply waits 40 ms for an acknowledgement; asyncio sets it only for other sockets.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The address decides on the token and not the host name, because a name can resolve to any address.
    token = None if is_loopback(listening.getsockname()[0]) else load_token(session.folder)
    address = f"http://{link_host(host)}:{listening.getsockname()[1]}/"
    waiting = len(session.questions) - session.judged
    out.inform(
        f"{waiting} questions wait for people at {address} (if the run stops, the same command resumes it)."
    )
    if token:  # only the terminal shows the token, because others may read the log
        sys.stderr.write(f"The link for people, with the token: {address}?token={token}\n")
    with (
        listening,
        Progress(len(session.questions), "label human", "question", session.judged) as progress,
    ):
        page = Page(session, cfg, token, progress)
        with page.stopped_after(out.allowance.seconds_left):
            page.server.run([listening])
    if page.failure:
        raise page.failure
    if not session.complete:
        answers = f"{session.judged} of {len(session.questions)} answers, which are kept"
        out.allowance.stop_if_late(f"in label human after {answers}")
        raise KeyboardInterrupt


def policy_of(html: str) -> str:
    """Return a Content-Security-Policy that allows only the page's own script and style, by their digests."""
    sources = {}
    for kind in ("script", "style"):
        [content] = re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        sources[kind] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{sources['script']}'; style-src 'sha256-{sources['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Page:
    """The web server of a session. Requests are processed one after the other."""

    def __init__(self, session: Session, cfg: HumanPage, token: str | None, progress: Progress):
        self.session, self.token, self.progress = session, token, progress
        # the reason why an answer could not be saved
        self.failure: OSError | UserError | None = None
        self.page_texts = {"instructions": cfg.instructions, "reasons": session.reasons}
        self.headers = HEADERS | {"Content-Security-Policy": policy_of(HTML)}

        def undo(body: dict[str, Any]) -> None:
            session.undo(body["annotator"], get_field(body, "question", str))

        acts = {"/next": lambda body: None, "/answer": self.answer, "/undo": undo}
        routes = [Route(path, self.handler(act), methods=["POST"]) for path, act in acts.items()]
        self.app = Starlette(routes=[Route("/", self.html), *routes])
        quiet: dict[str, Any] = {"log_config": None, "log_level": "error", "access_log": False}
        plain: dict[str, Any] = {
            "interface": "asgi3",
            "lifespan": "off",
            "server_header": False,
            "ws": "none",
        }
        bounded: dict[str, Any] = {
            "http": "h11",
            "headers": [("Connection", "close")],
            "proxy_headers": False,
        }
        bounded |= {"timeout_graceful_shutdown": 1, "limit_concurrency": MAX_CONNECTIONS}
        self.server = uvicorn.Server(uvicorn.Config(self.respond, **quiet, **plain, **bounded))

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check access for every path and method, then route the request."""
        try:
            self.require_access(Request(scope))
        except Refused as refused:
            return await error_response(refused)(scope, receive, send)
        await self.app(scope, receive, send)

    async def html(self, request: Request) -> Response:
        """Return the page, which has no data of the session."""
        return HTMLResponse(HTML, headers=self.headers)

    def handler(self, act: Callable[[Body], None]) -> Callable[[Request], Any]:
        """Return a request handler that runs `act` and replies with the new state of the page."""

        async def respond(request: Request) -> Response:
            try:
                # Forms of other sites can only send other content types.
                if (
                    request.headers.get("content-type", "").partition(";")[0].strip()
                    != "application/json"
                ):
                    raise Refused(415, "the content type must be application/json")
                body = parse_body(await read_body(request))
                act(body)
                self.progress.update(self.session.judged - self.progress.done)
                if self.session.complete:
                    asyncio.get_running_loop().call_later(
                        LAST if self.session.showing else GRACE, self.end
                    )
                return JSONResponse(self.state(body["annotator"]), headers=HEADERS)
            except Refused as refused:
                return error_response(refused)
            except ClientDisconnect:
                return Response()  # the client is gone, and nobody reads the response
            except (OSError, UserError) as error:
                # the disk is full, or the journal is not a regular file
                self.failure, self.server.should_exit = error, True
                reason = (
                    error.strerror if isinstance(error, OSError) else "the journal is not a file"
                )
                return error_response(
                    Refused(507, f"the answer was not saved, and the server stops: {reason}")
                )

        return respond

    @contextmanager
    def stopped_after(self, seconds: float | None) -> Iterator[None]:
        """Stop the server after some seconds, unless the block has ended by then. None: never."""

        def stop() -> None:
            self.server.should_exit = True

        timer = threading.Timer(seconds or 0.0, stop)
        timer.daemon = True
        if seconds is not None:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end(self) -> None:
        # an undo makes the session incomplete again
        self.server.should_exit |= self.session.complete

    def require_access(self, request: Request) -> None:
        """Raise Refused if a request comes from another site or does not have the token."""
        host = request.headers.get("host", "")
        # no website can own these names
        if self.token is None and not is_loopback(host_name(host)):
            raise Refused(403, "open this page as 127.0.0.1 or localhost")
        if foreign := {*request.headers.getlist("origin")} - {f"http://{host}", f"https://{host}"}:
            raise Refused(403, f"requests from {min(foreign)} are not allowed")
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        sent = sent or request.query_params.get("token", "")
        if self.token is not None and not hmac.compare_digest(sent.encode(), self.token.encode()):
            raise Refused(
                401,
                "the token is missing or wrong. Use the link that ends with ?token= and the token",
            )

    def answer(self, body: Body) -> None:
        """Save a verdict. Letters of the page, which follow this person's order, become the question's letters."""
        annotator, verdict = body["annotator"], get_field(body, "verdict", str)
        seconds = get_field(body, "seconds", int, float)
        name, reasons = get_field(body, "question", str), get_field(body, "reasons", list)
        question = self.session.questions.get(name)
        if not all(isinstance(reason, str) for reason in reasons) or not (
            isfinite(seconds) and 0 <= seconds < 1e7
        ):
            raise Refused(
                400, "each reason must be a text, and seconds a number from 0 to 10,000,000"
            )
        order = question.order(annotator) if question else ""
        if question and verdict in [*question.letters]:
            verdict = order[question.letters.index(verdict)]
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        comment = shown_text(get_field(body, "comment", str).strip())
        self.session.save(
            Answer(name, annotator, verdict, tuple(reasons), comment, order, round(seconds, 2), at)
        )

    def state(self, annotator: str) -> dict[str, Any]:
        """Return the data that the page shows: the next question, and the progress of this person and of all."""
        answers = self.session.answers.get(annotator, {})
        question = self.session.next(annotator)
        return {
            **self.page_texts,
            "question": question_as_shown(question, annotator) if question else None,
            "last": next(reversed(answers), None),
            "mine": len(answers),
            "judged": self.session.judged,
            "questions": len(self.session.questions),
            "people": sum(map(bool, self.session.answers.values())),
            "agreement": self.session.agreement(),
        }


def question_as_shown(question: Question, annotator: str) -> dict[str, Any]:
    """Return the texts of a question in this person's order, without their ids or models."""
    texts = [
        question.candidates[question.letters.index(letter)].text
        for letter in question.order(annotator)
    ]
    return {
        "id": question.id,
        "messages": [
            {"role": shown_text(m["role"]), "spans": spans(m["content"])}
            for m in question.prompt.messages
        ],
        "answers": [{"spans": spans(text)} for text in texts],
    }


async def read_body(request: Request) -> bytes:
    """Return the body of a request. Raise Refused as soon as it is too large."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST:
            raise Refused(413, f"a request may have at most {LARGEST} bytes")
    return content


def parse_body(content: bytes) -> Body:
    """Return the fields of a JSON body with a valid annotator name. Raise Refused for any other body."""
    try:
        body = require_keys()(json.loads(content))
    except WRONG_SHAPE as error:
        raise Refused(400, "the body is not a JSON object") from error
    if not NAME.fullmatch(get_field(body, "annotator", str)):
        raise Refused(400, NAME_RULE)
    return body


def get_field(body: Body, name: str, *kinds: type) -> Any:
    """Return a field of the body. Raise Refused if its type is not among `kinds`."""
    if type(value := body.get(name)) not in kinds:
        raise Refused(400, f"{name} must have the type {kinds[0].__name__}")
    return value


def error_response(refused: Refused) -> Response:
    return JSONResponse({"error": str(refused)}, refused.status, headers=HEADERS)
