"""Questions are put to people, on a page with three requests: what is next, an answer, an answer taken back.

Whoever could reach the server without being meant to is turned away: a site that has a name of its own lead here (DNS
rebinding) by the Host, one that sends a form by the Origin and the type of the content, anybody beyond this machine by
a token, without which nothing is answered, the page included. The page loads nothing but itself.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stages.config.blocks.labels import Human
from stages.config.errors import UserError
from stages.labelers.people import answer_rows
from stages.labelers.people.access import Connection, host_name, is_loopback, link_host, load_token
from stages.labelers.people.markup import shown_text, spans
from stages.labelers.people.questions import Question
from stages.labelers.people.session import NAME, Answer, Refused, Session
from stages.store import locks, plugins
from stages.store.sealed_json import WRONG_SHAPE, having
from stages.store.workspace import Progress, StageDir

HTML = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
LARGEST = 1 << 16  # bytes of a request's body
GRACE = 5.0  # seconds after the last answer in which it can be taken back
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
Body = Mapping[str, Any]


def collect_answers(questions: Sequence[Question], cfg: Human, out: StageDir) -> Session:
    """The session of these questions when all is answered, by people here or in a file; its figures go to the node.

    Raises:
        UserError: for a file of answers that cannot be used, and an address that cannot be listened at.
        KeyboardInterrupt: where the server was stopped before that.
    """
    folder = out.calls / "people"
    # One process at a time: two of them would not know of each other's answers.
    with locks.held(locks.opened(folder / "people.lock"), "the page for people", "used"):
        session = Session([*questions], cfg.reasons or [], folder)
        try:
            if cfg.answered:
                out.say(answer_rows.read(plugins.user_path(cfg.answered), session))
            answer_rows.write(session, out)
            if not session.complete:
                out.say(f"for people who judge elsewhere: {out / answer_rows.PLAIN}, {out / answer_rows.ARGILLA}")
                serve(session, cfg, out)
        finally:
            answer_rows.write(session, out)
    out.asked["label.human"] = session.figures()
    return session


def serve(session: Session, cfg: Human, out: StageDir) -> None:
    """Ask until every question has its answers.

    Raises:
        UserError: where the address cannot be listened at, or a journal is not a file.
        OSError: where an answer could not be kept.
        KeyboardInterrupt: where the server was stopped before that.
    """
    host, port = cfg.runtime.host or "127.0.0.1", cfg.runtime.port or 0
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(
            f"label.human.runtime: cannot listen at {host}, port {port}: {error.strerror}. port=0 takes a free one."
        ) from error
    # asyncio does so for sockets that name their protocol alone; without, answers wait 40 ms for an acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Where it listens, and not by what name: a name may lead anywhere.
    token = None if is_loopback(listening.getsockname()[0]) else load_token(session.folder)
    address = f"http://{link_host(host)}:{listening.getsockname()[1]}/"
    out.say(f"{len(session.questions) - session.judged} questions for people at {address}; the same command resumes.")
    if token:  # the terminal alone shows it: a log may be read by others
        sys.stderr.write(f"The link for people, with its token: {address}?token={token}\n")
    with listening, Progress(len(session.questions), "label human", "question", session.judged) as progress:
        page = Page(session, cfg, token, progress)
        page.server.run([listening])
    if page.failure:
        raise page.failure
    if not session.complete:
        raise KeyboardInterrupt


def policy_of(html: str) -> str:
    """A Content-Security-Policy under which nothing runs but the page's own script, known by its digest."""
    sources = {}
    for kind in ("script", "style"):
        [content] = re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        sources[kind] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{sources['script']}'; style-src 'sha256-{sources['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Page:
    """The server of a session. Requests are dealt with one after the other, each to its end."""

    def __init__(self, session: Session, cfg: Human, token: str | None, progress: Progress):
        self.session, self.token, self.progress = session, token, progress
        self.failure: OSError | UserError | None = None  # why an answer could not be kept
        self.page_texts = {"instructions": cfg.instructions, "reasons": session.reasons}
        self.headers = HEADERS | {"Content-Security-Policy": policy_of(HTML)}
        acts = {"/next": lambda body: None, "/answer": self.answer, "/undo": self.undo}
        routes = [Route(path, self.handler(act), methods=["POST"]) for path, act in acts.items()]
        self.app = Starlette(routes=[Route("/", self.html), *routes])
        quiet: dict[str, Any] = {"log_config": None, "log_level": "error", "access_log": False}
        plain: dict[str, Any] = {"interface": "asgi3", "lifespan": "off", "server_header": False, "ws": "none"}
        bounded: dict[str, Any] = {"http": Connection, "headers": [("Connection", "close")]}
        bounded |= {"timeout_graceful_shutdown": 1, "proxy_headers": False}
        self.server = uvicorn.Server(uvicorn.Config(self.respond, **quiet, **plain, **bounded))

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, of whatever path and method, if it may be answered."""
        try:
            self.require_access(Request(scope))
        except Refused as refused:
            return await error_response(refused)(scope, receive, send)
        await self.app(scope, receive, send)

    async def html(self, request: Request) -> Response:
        """The page, which holds nothing of the session."""
        return HTMLResponse(HTML, headers=self.headers)

    def handler(self, act: Callable[[Body], None]) -> Callable[[Request], Any]:
        """What answers a request: it acts, and tells what is next."""

        async def respond(request: Request) -> Response:
            try:
                require_json(request)
                body = parse_body(await read_body(request))
                act(body)
                self.progress.update(self.session.judged - self.progress.done)
                if self.session.complete:
                    asyncio.get_running_loop().call_later(GRACE, self.end)
                return JSONResponse(self.state(body["annotator"]), headers=HEADERS)
            except Refused as refused:
                return error_response(refused)
            except ClientDisconnect:
                return Response()  # which nobody reads
            except (OSError, UserError) as error:  # a full disk, or what is not a file
                self.failure, self.server.should_exit = error, True
                reason = error.strerror if isinstance(error, OSError) else "the journal is not a file"
                return error_response(Refused(507, f"nothing was saved, and the server stops: {reason}"))

        return respond

    def end(self) -> None:
        self.server.should_exit |= self.session.complete  # unless something was taken back

    def require_access(self, request: Request) -> None:
        """Raise Refused for a request of another site, or of somebody without the token."""
        host = request.headers.get("host", "")
        if self.token is None and not is_loopback(host_name(host)):  # a name that no site can have
            raise Refused(403, "this server is called 127.0.0.1 or localhost")
        if foreign := {*request.headers.getlist("origin")} - {f"http://{host}", f"https://{host}"}:
            raise Refused(403, f"no request of {min(foreign)}")
        if self.token is not None and not hmac.compare_digest(token_of(request).encode(), self.token.encode()):
            raise Refused(401, "the link ends in ?token= and a token, which is missing here or another one")

    def answer(self, body: Body) -> None:
        """Keep a verdict. The page knows letters by what stands where; the journal by the question."""
        annotator, verdict, seconds = (
            body["annotator"],
            required_field(body, "verdict", str),
            required_field(body, "seconds", int, float),
        )
        question = self.session.questions.get(required_field(body, "question", str))
        reasons = required_field(body, "reasons", list)
        if not all(isinstance(reason, str) for reason in reasons) or not (isfinite(seconds) and 0 <= seconds < 1e7):
            raise Refused(400, "reasons are texts, and seconds a number")
        order = question.order(annotator) if question else ""
        if question and verdict in [*question.letters]:
            verdict = order[question.letters.index(verdict)]
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        fields = (
            required_field(body, "question", str),
            annotator,
            verdict,
            tuple(reasons),
            shown_text(required_field(body, "comment", str).strip()),
        )
        self.session.save(Answer(*fields, order, round(seconds, 2), at))

    def undo(self, body: Body) -> None:
        self.session.undo(body["annotator"], required_field(body, "question", str))

    def state(self, annotator: str) -> dict[str, Any]:
        """What the page shows: the question, and how far this person and all of them are."""
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
    """The texts of a question as this person sees them, and nothing of where they are from."""
    texts = [question.candidates[question.letters.index(letter)].text for letter in question.order(annotator)]
    return {
        "id": question.id,
        "messages": [{"role": shown_text(m["role"]), "spans": spans(m["content"])} for m in question.prompt.messages],
        "answers": [{"spans": spans(text)} for text in texts],
    }


def token_of(request: Request) -> str:
    """The token that a request of the page sends, or the one in its address; '' where there is none."""
    return request.headers.get("authorization", "").removeprefix("Bearer ") or request.query_params.get("token", "")


def require_json(request: Request) -> None:
    """Raise Refused for content that a form of another site could send."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "the content is application/json")


async def read_body(request: Request) -> bytes:
    """The body of a request. Raises Refused as soon as it is too large."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST:
            raise Refused(413, f"a request has {LARGEST} bytes at most")
    return content


def parse_body(content: bytes) -> Body:
    """The body's fields, an annotator's name among them."""
    try:
        body = having()(json.loads(content))
    except WRONG_SHAPE as error:
        raise Refused(400, "no JSON object") from error
    if not NAME.fullmatch(required_field(body, "annotator", str)):
        raise Refused(400, "a name is up to 40 of a-z, 0-9, _ and -, and begins with a letter or a digit")
    return body


def required_field(body: Body, name: str, *kinds: type) -> Any:
    """A field of this type. Raises Refused for any other."""
    if type(value := body.get(name)) not in kinds:
        raise Refused(400, f"{name} is no {kinds[0].__name__}")
    return value


def error_response(refused: Refused) -> Response:
    return JSONResponse({"error": str(refused)}, refused.status, headers=HEADERS)
