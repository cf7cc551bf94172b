"""A client of a model at an OpenAI-compatible server, with retries, rate limits, a budget, and a cache of replies. The
openai package sends requests with its own retries off, because each attempt is counted here. Replies are limited in
size (`bounded_http.py`), freed from the API key (`reply.py`), and stored before use (`store/call_cache.py`)."""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from stages.config.blocks.endpoints import ANSWER_LIMITS, Endpoint
from stages.config.errors import LimitReached, UserError
from stages.config.installation import install_command
from stages.endpoints.reply import KeyMask, NoReply, Redirected, Reply, parse_reply
from stages.endpoints.spending import Pace, Spending, backoff, retry_after
from stages.store.allowance import Allowance
from stages.store.call_cache import Calls, key_of
from stages.store.records import Message
from stages.store.workspace import SCRATCH, StageDir

HEAD = 16  # largest number of tokens that a chat template adds to a message
# HTTP statuses with which a server refuses all calls, each with the kind of the reason
REFUSALS = {401: "key", 402: "payment", 403: "key", 404: "model"}
# the same reasons in the words of an error with another status, as of OpenAI (429), Google and Anthropic (400)
PAYMENT = re.compile(
    r"insufficient[ _](quota|balance|credit|funds)|billing_hard_limit|credit balance is too low",
    re.IGNORECASE,
)
REFUSALS_IN_TEXT = {
    "key": re.compile(r"api[ _-]?key", re.IGNORECASE),
    "model": re.compile(
        r"(unknown|no such|invalid) model|\bmodel\b.{0,80}(not (found|exist)|is unknown)",
        re.IGNORECASE,
    ),
}
RETRYABLE = {408, 409, 425, 429}  # HTTP statuses below 500 that a retry may overcome
TOO_MANY_CALLS = {429, 503, 529}
# The errors of OpenAI, vLLM, SGLang and llama.cpp for a request that exceeds the model's context.
TOO_LONG = re.compile(
    r"context.(length|size|window)|maximum (context|model) length|max_model_len", re.IGNORECASE
)
PATIENCE = 900.0  # longest Retry-After in seconds before the stage stops


T = TypeVar("T")
Job = Callable[[], Coroutine[Any, Any, T]]


@dataclass(frozen=True)
class Question:
    """A chat request to a model."""

    messages: list[Message]
    max_tokens: int
    temperature: float
    seed: int
    top_p: float = 1.0
    response_format: Mapping[str, Any] | None = None

    def request(self, endpoint: Endpoint) -> dict[str, Any]:
        """Return the JSON body of the request."""
        body = {"model": endpoint.model, **vars(self), **endpoint.extra}
        return {name: value for name, value in body.items() if value is not None}

    def token_bounds(self, extra: Mapping[str, Any]) -> tuple[int, int]:
        """Return upper bounds on the tokens of the request and of the answer. A token has at least one byte. `extra`
        may set another limit for the answer, or another name of the limit."""
        texts = [m["content"] for m in self.messages] + [json.dumps(self.response_format or "")]
        limits = {"max_tokens": self.max_tokens, **extra}
        output = [limits[name] for name in ANSWER_LIMITS if type(limits.get(name)) is int]
        request = sum(len(text.encode()) for text in texts) + HEAD * (1 + len(self.messages))
        return request, max(output, default=self.max_tokens)


class Client:
    """A client of one endpoint's model. `key` is the endpoint's setting on the command line, for messages."""

    def __init__(self, endpoint: Endpoint, key: str, out: StageDir):
        self.endpoint, self.name, runtime = endpoint, key, endpoint.runtime
        self.calls = Calls(out.call_folder, str(endpoint.base_url), str(endpoint.model))
        spent = out / SCRATCH / "spent" / self.calls.path.name
        self.spending = Spending(spent, endpoint.budget, endpoint.price, key, out.allowance)
        self.requests = Pace(runtime.requests_per_minute)
        self.tokens = Pace(runtime.tokens_per_minute)
        self.pending: dict[str, asyncio.Task[Reply]] = {}
        # keys of new replies, and of cached ones
        self.answered, self.reused = set[str](), set[str]()
        self.failures, self.ended = Counter[str](), False

    @contextmanager
    def opened(self, allowance: Allowance) -> Iterator["Client"]:
        """Open the files of cached replies and of spending. Only one process at a time can open them. Locks belong to
        one event loop, and a training that asks in every step has a new loop each time."""
        self.slots = asyncio.Semaphore(self.endpoint.runtime.concurrency)
        self.reading = asyncio.Lock()
        self.ended = False
        with self.calls.opened(allowance), self.spending.opened():
            yield self

    @cached_property
    def api(self) -> Any:
        """The openai client, created for the first call: cached replies need neither the package nor an API key.
        Raise UserError if the package or the API key is missing."""
        try:
            import openai

            from stages.endpoints.bounded_http import http_client
        except ImportError as error:
            raise UserError(
                f"{self.name} needs the package openai. Type: {install_command('endpoints')}"
            ) from error
        endpoint, variable = self.endpoint, f"{self.name}.api_key_env={self.endpoint.api_key_env}"
        if endpoint.api_key_env and not self.secret:
            way_out = "Set it to the API key, and type the same command again."
            raise UserError(f"{variable}: the environment has no such variable. {way_out}")
        if not (self.secret.isascii() and self.secret.isprintable()):
            problem = "the variable has characters that an HTTP header cannot have"
            raise UserError(f"{variable}: {problem}. Set it to the API key alone.")
        options = {
            "api_key": self.secret or "none",
            "timeout": endpoint.runtime.timeout,
            "http_client": http_client(),
        }
        with without_openai_variables():
            return openai.AsyncOpenAI(base_url=endpoint.base_url, max_retries=0, **options)

    @property
    def secret(self) -> str:
        return os.environ.get(self.endpoint.api_key_env or "", "").strip()

    @cached_property
    def mask(self) -> KeyMask:
        return KeyMask(self.secret)

    async def close(self) -> None:
        """Start no further calls, and wait for the running ones, which may be paid for."""
        self.ended = True
        await asyncio.gather(*self.pending.values(), return_exceptions=True)
        if "api" in vars(self):
            await vars(self).pop("api").close()

    async def ask(self, question: Question, fresh: bool = False) -> Reply:
        """Return the reply to a question, from the cache unless `fresh`. Equal concurrent questions share one call.

        Raises:
            NoReply: if every attempt failed.
            UserError: if the endpoint refuses all calls, or the budget is spent.
            LimitReached: if the command may not spend the money for the call."""
        call: dict[str, Any] = {
            "endpoint": self.endpoint.base_url,
            "request": question.request(self.endpoint),
        }
        # `extra` replaces it, and each draw is a call of its own
        if call["request"].get("seed") != question.seed:
            call["draw"] = question.seed
        key = key_of(call)
        if not fresh and (stored := self.calls.get(key)) is not None:
            self.reused |= {key} - self.answered
            return parse_reply(self.mask(stored))
        if key not in self.pending:
            bounds = question.token_bounds(self.endpoint.extra)
            self.pending[key] = asyncio.ensure_future(self._retry(key, call, bounds))
            self.pending[key].add_done_callback(lambda _: self.pending.pop(key))
        return await asyncio.shield(self.pending[key])

    async def _retry(self, key: str, call: dict[str, Any], bounds: tuple[int, int]) -> Reply:
        """Return the reply of the first successful attempt, within the limit of retries."""
        runtime, attempt = self.endpoint.runtime, 0
        while True:
            try:
                async with self.slots:
                    reply = await self._attempt(key, call, bounds)
                await asyncio.gather(self.calls.durable(), self.spending.durable())
                return reply
            except NoReply as error:
                self.failures[error.reason] += 1
                attempt += 1
                if not error.retryable or attempt > runtime.retries or self.ended:
                    raise
            except (UserError, LimitReached):
                self.ended = True
                raise
            await asyncio.sleep(backoff(runtime.backoff, attempt))

    async def _attempt(self, key: str, call: dict[str, Any], bounds: tuple[int, int]) -> Reply:
        """Return the reply of one call. For a failed call that may have reached the model, `bounds` count as spent."""
        if self.ended:
            raise NoReply("the stage ends", retryable=False)
        send, request = self.api.chat.completions.with_raw_response.create, dict(call["request"])
        import openai

        model, messages = request.pop("model"), request.pop("messages")
        await self.spending.reserve(*bounds)
        used, was_sent = bounds, True
        try:
            await self.requests.wait(lambda: self.ended)
            await self.tokens.wait(lambda: self.ended, sum(bounds))
            if self.ended:
                used, was_sent = (0, 0), False
                raise NoReply("the stage ends", retryable=False)
            async with asyncio.timeout(self.endpoint.runtime.timeout):
                content = (await send(model=model, messages=messages, extra_body=request)).content
            # 2 MB of JSON can become 50 MB of objects, so one reply is parsed at a time
            async with self.reading:
                # so other calls can still time out
                body, reply = await asyncio.to_thread(self._parse, content)
            self.calls.store_answer(key, call, body)
            self.answered.add(key)
            used = reply.tokens(bounds)
        except (TimeoutError, openai.APITimeoutError) as error:
            used = (0, 0) if is_unsent(error) else bounds
            raise NoReply(
                f"no answer in {self.endpoint.runtime.timeout:g} s", retryable=True
            ) from error
        except openai.APIStatusError as error:
            used = (0, 0)
            raise self._error_for(error) from error
        except openai.APIConnectionError as error:
            used = (0, 0) if is_unsent(error) else bounds
            raise NoReply("the connection broke", retryable=True) from error
        except Redirected as error:
            used = (0, 0)
            problem = f"the server redirects to {self.mask(error.host)!r} (HTTP {error.status})"
            way_out = "Prompts are sent only to base_url: set it to the address that you trust."
            raise UserError(
                f"{self.name}.base_url={self.endpoint.base_url}: {problem}. {way_out}"
            ) from error
        finally:
            self.spending.settle(bounds, used, was_sent)
            self.tokens.give_back(sum(bounds) - sum(used))
        return reply

    def _parse(self, content: bytes) -> tuple[str, Reply]:
        """Return the body of a chat completion without the API key, and the reply in it. JSON is UTF-8 (RFC 8259)."""
        try:
            body = self.mask(content.decode())
        except UnicodeDecodeError as error:
            raise NoReply("the body is not UTF-8", retryable=True) from error
        return body, parse_reply(body)

    def _error_for(self, error: Any) -> Exception:
        """Return the exception for an HTTP error."""
        status = error.status_code
        # some servers repeat the API key
        whole_text = " ".join(self.mask(error.response.text).split())
        server_text = whole_text[:200]
        kind = kind_of_refusal(status, whole_text, has_answered=bool(self.answered))
        if kind:
            problem, way_out = self._refusal(kind)
            said = f"(HTTP {status}: {server_text})"
            return UserError(f"{self.name}: {self.endpoint.base_url} {problem} {said}. {way_out}.")
        if (wait := retry_after(error.response.headers)) is not None and (
            status == 429 or status >= 500
        ):
            if wait > PATIENCE:
                pause = f"{self.endpoint.base_url} asks for a pause of {wait:.0f} s. All replies are stored"
                return UserError(
                    f"{self.name}: {pause}: type the same command again after that time."
                )
            self.requests.rest(wait)
        if is_too_long(status, whole_text):
            return NoReply(f"the prompt is too long for the model (HTTP {status})", retryable=False)
        if status in TOO_MANY_CALLS:
            way_out = f"a lower {self.name}.runtime.requests_per_minute asks less often"
            return NoReply(f"HTTP {status}: the server is asked too often, and {way_out}", True)
        if status in RETRYABLE or status >= 500:
            return NoReply(f"HTTP {status}", retryable=True)
        reason = f"HTTP {status}: {server_text}" if server_text else f"HTTP {status}"
        return NoReply(reason, retryable=False, refuses_request=True)

    def _refusal(self, kind: str) -> tuple[str, str]:
        """Return why the server refuses all calls, and what to do about it."""
        resumes = "type the same command again, which resumes with the stored replies"
        if kind == "payment":
            return "asks for payment", f"Pay there, and {resumes}"
        if kind == "model":
            way_out = f"Set {self.name}.model and {self.name}.base_url as the server has them"
            return "has no such model or path", way_out
        variable = self.endpoint.api_key_env
        if variable:
            return "refuses the key", f"Set {variable} to a key that it accepts, and {resumes}"
        return "refuses the key", f"Name the variable with the key: {self.name}.api_key_env=NAME"

    def figures(self) -> dict[str, Any]:
        """Return the calls and tokens of all attempts at this node, and the number of used cached replies."""
        spent = self.spending
        money = {"money": spent.money} if self.endpoint.price.is_complete else {}
        counts = {"made": spent.calls, "kept": len(self.reused), "failed": dict(self.failures)}
        return counts | {"input_tokens": spent.input, "output_tokens": spent.output} | money


def kind_of_refusal(status: int, text: str, has_answered: bool) -> str | None:
    """Return the kind of reason for which a server refuses all calls, by its status or its words; None for another
    error. A server that has answered accepts key and model, and its words are about one prompt."""
    if status in REFUSALS or not 400 <= status < 500 or is_too_long(status, text):
        return REFUSALS.get(status)
    if PAYMENT.search(text):
        return "payment"
    if has_answered or status in RETRYABLE:
        return None
    for kind, pattern in REFUSALS_IN_TEXT.items():
        if pattern.search(text):
            return kind
    return None


def is_too_long(status: int, text: str) -> bool:
    """Return whether a request exceeds the model's context, or what the server reads."""
    return status == 413 or (400 <= status < 500 and TOO_LONG.search(text) is not None)


def time_is_up(allowance: Allowance, clients: Sequence[Client]) -> LimitReached:
    """Return the end of a command whose time is up. No client starts a further call."""
    for client in clients:
        client.ended = True
    names = ", ".join(client.name for client in clients)
    return allowance.time_is_up(f"at {names}, whose replies are kept")


def is_unsent(error: BaseException) -> bool:
    """Return whether a call failed before a byte of it was sent: the model has not seen it, and nothing is to pay."""
    import httpx2

    return isinstance(
        error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout
    )


@contextmanager
def without_openai_variables() -> Iterator[None]:
    """Remove variables that begin with OPENAI_ from the environment, for the duration of the context. The openai
    client would send such keys, organizations, projects and headers to any endpoint."""
    removed = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("OPENAI_")}
    try:
        yield
    finally:
        os.environ.update(removed)


def run_jobs(
    clients: Sequence[Client],
    jobs: Iterable[Job[T]],
    out: StageDir,
    allowance: Allowance | None = None,
) -> Generator[T, None, None]:
    """Yield the results of jobs that call these clients, in the order of completion. Twice as many jobs run as calls
    are allowed, so that jobs waiting for the disk block no calls. The clients' figures are stored in `out.asked`. No
    job begins when the time of `allowance` is up; a training has none here, as it looks at the time after each step.

    Raises:
        UserError: the first UserError of a job, after the running calls have ended, because they may be paid for.
        LimitReached: if the time or the money of the command is used up, after the running calls too."""
    at_once = 2 * sum(client.endpoint.runtime.concurrency for client in clients)
    waiting, running = iter(jobs), set[asyncio.Task[T]]()
    errors = list[UserError | LimitReached]()
    allowance = allowance or Allowance()
    with ExitStack() as opened, asyncio.Runner() as runner:
        # one order for all processes: no deadlock
        for client in sorted(clients, key=lambda c: c.calls.path):
            opened.enter_context(client.opened(allowance))
        try:
            while True:
                if allowance.is_late and not errors:
                    errors.append(time_is_up(allowance, clients))
                while not errors and len(running) < at_once and (job := next(waiting, None)):
                    running.add(runner.get_loop().create_task(job()))
                if not running:
                    break
                seconds = None if errors else allowance.seconds_left
                wait = asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                done, running = runner.run(wait)
                # The first of them ends the other jobs, so its reason comes before their missing replies.
                errors += [
                    error
                    for task in done
                    if isinstance(error := task.exception(), UserError | LimitReached)
                ]
                for task in () if errors else done:
                    yield task.result()
            if errors:
                raise errors[0]
        finally:
            for client in clients:
                client.ended = True
            for client in clients:
                runner.run(client.close())
                out.endpoint_calls[client.name] = client.figures()
