"""Asking a model at an OpenAI-compatible server: every question once, failures again, within limits and a budget.

The client of `openai` sends, with its own retries off: an attempt is counted where it is made. What a server answers
is bounded as it comes (`bounded_http.py`), rid of the key (`reply.py`), and stored before use (`store/call_cache.py`).
"""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stages.config.blocks.endpoints import Endpoint
from stages.config.errors import UserError
from stages.config.installation import install_command
from stages.endpoints.reply import KeyMask, NoReply, Redirected, Reply, decode, read
from stages.endpoints.spending import Pace, Spending, backoff, retry_after
from stages.store.call_cache import Calls, key_of
from stages.store.records import Message
from stages.store.workspace import SCRATCH, StageDir

HEAD = 16  # tokens that a server may put around a message
LIMITS = ("max_tokens", "max_completion_tokens")  # what servers call the tokens of an answer, at most
REFUSED = {401: "refuses the key", 403: "refuses the key", 404: "knows no such model, or no such path"}
AGAIN = {408, 409, 425, 429}  # statuses that another attempt may not meet, beside the server's own errors
# What servers say of a request that the model's context does not hold: OpenAI, vLLM, SGLang, llama.cpp.
TOO_LONG = re.compile(r"context.(length|size|window)|maximum (context|model) length|max_model_len", re.IGNORECASE)
PATIENCE = 900.0  # seconds that a server may ask to be left alone before the stage gives up


@dataclass(frozen=True)
class Question:
    """A chat to be answered."""

    messages: list[Message]
    max_tokens: int
    temperature: float
    seed: int
    top_p: float = 1.0
    response_format: Mapping[str, Any] | None = None

    def request(self, endpoint: Endpoint) -> dict[str, Any]:
        """The body that is sent."""
        body = {
            "model": endpoint.model,
            "messages": self.messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "response_format": self.response_format,
        }
        return {name: value for name, value in (body | endpoint.extra).items() if value is not None}

    def most(self, extra: Mapping[str, Any]) -> tuple[int, int]:
        """Tokens of the request and of the answer, at most: a token is a byte or more, and `extra` may limit the
        answer by another number, or under another name."""
        texts = [m["content"] for m in self.messages] + [json.dumps(self.response_format or "")]
        limits = {"max_tokens": self.max_tokens, **extra}
        output = [limits[name] for name in LIMITS if type(limits.get(name)) is int]
        request = sum(len(text.encode()) for text in texts) + HEAD * (1 + len(self.messages))
        return request, max(output, default=self.max_tokens)


class Client:
    """One endpoint's model. `key` is what the endpoint is called on the command line, for errors."""

    def __init__(self, endpoint: Endpoint, key: str, out: StageDir):
        self.endpoint, self.name, runtime = endpoint, key, endpoint.runtime
        self.calls = Calls(out.calls, str(endpoint.base_url), str(endpoint.model))
        spent = out / SCRATCH / "spent" / self.calls.path.name
        self.spending = Spending(spent, endpoint.budget, endpoint.price, key)
        self.requests, self.tokens = Pace(runtime.requests_per_minute), Pace(runtime.tokens_per_minute)
        self.room = asyncio.Semaphore(runtime.concurrency)
        self.asking: dict[str, asyncio.Task[Reply]] = {}
        self.answered, self.reused = set[str](), set[str]()  # keys of answers of now, and of an earlier time
        self.failures, self.ended = Counter[str](), False

    @contextmanager
    def opened(self) -> Iterator["Client"]:
        """Hold the files of kept answers and of what is spent; no other process then asks this model."""
        self.ended, self.reading = False, asyncio.Lock()
        with self.calls.opened(), self.spending.opened():
            yield self

    @cached_property
    def api(self) -> Any:
        """The client of `openai`, made for the first call: what is kept needs neither the package nor a key.

        Raises:
            UserError: without the package, or without the key that is named.
        """
        try:
            import openai

            from stages.endpoints.bounded_http import http_client
        except ImportError as error:
            raise UserError(f"{self.name} needs the package openai: {install_command('endpoints')}.") from error
        if self.endpoint.api_key_env and not self.secret:
            raise UserError(
                f"{self.name}.api_key_env={self.endpoint.api_key_env}: the environment has no such variable. Set it, "
                "and the same command goes on from here."
            )
        if not (self.secret.isascii() and self.secret.isprintable()):
            raise UserError(
                f"{self.name}.api_key_env={self.endpoint.api_key_env}: the variable holds characters that no HTTP "
                "header can. Set it to the key alone."
            )
        key = self.secret or "none"
        with without_openai_variables():
            return openai.AsyncOpenAI(
                api_key=key,
                base_url=self.endpoint.base_url,
                max_retries=0,
                timeout=self.endpoint.runtime.timeout,
                http_client=http_client(),
            )

    @property
    def secret(self) -> str:
        return os.environ.get(self.endpoint.api_key_env or "", "").strip()

    @cached_property
    def mask(self) -> KeyMask:
        return KeyMask(self.secret)

    async def close(self) -> None:
        """Begin no further call, and end once those on their way have come: they may be paid for."""
        self.ended = True
        await asyncio.gather(*self.asking.values(), return_exceptions=True)
        if "api" in vars(self):
            await vars(self).pop("api").close()

    async def ask(self, question: Question, fresh: bool = False) -> Reply:
        """Return the answer, of now or of an earlier time; a `fresh` one is of now. Equal requests are one call.

        Raises:
            NoReply: where no attempt gave one.
            UserError: where further calls make no sense, or the budget allows none.
        """
        asked = {"endpoint": self.endpoint.base_url, "request": question.request(self.endpoint)}
        key = key_of(asked)
        if not fresh and (kept := self.calls.get(key)) is not None:
            self.reused |= {key} - self.answered
            return read(self.mask(kept))
        if key not in self.asking:
            self.asking[key] = asyncio.ensure_future(self._insist(key, asked, question.most(self.endpoint.extra)))
            self.asking[key].add_done_callback(lambda _: self.asking.pop(key))
        return await asyncio.shield(self.asking[key])

    async def _insist(self, key: str, asked: dict[str, Any], most: tuple[int, int]) -> Reply:
        """As many attempts as are allowed and may help."""
        runtime, attempt = self.endpoint.runtime, 0
        while True:
            try:
                async with self.room:
                    reply = await self._attempt(key, asked, most)
                await asyncio.gather(self.calls.durable(), self.spending.durable())
                return reply
            except NoReply as error:
                self.failures[error.reason] += 1
                attempt += 1
                if not error.again or attempt > runtime.retries or self.ended:
                    raise
            except UserError:
                self.ended = True
                raise
            await asyncio.sleep(backoff(runtime.backoff, attempt))

    async def _attempt(self, key: str, asked: dict[str, Any], most: tuple[int, int]) -> Reply:
        """One call. Of one that may have reached the model nobody knows what it cost: it counts in full."""
        if self.ended:
            raise NoReply("the stage ends", again=False)
        send, request = self.api.chat.completions.with_raw_response.create, dict(asked["request"])
        import openai

        model, messages = request.pop("model"), request.pop("messages")
        await self.spending.take(*most)
        used = most
        try:
            await self.requests.wait()
            await self.tokens.wait(sum(most))
            async with asyncio.timeout(self.endpoint.runtime.timeout):
                content = (await send(model=model, messages=messages, extra_body=request)).content
            async with self.reading:  # 2 MB of JSON can be 50 MB of lists: one at a time
                body, reply = await asyncio.to_thread(self._understand, content)  # the loop keeps its time-outs
            self.calls.keep(key, asked, body)
            self.answered.add(key)
            used = reply.tokens(most)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise NoReply(f"no answer in {self.endpoint.runtime.timeout:g} s", again=True) from error
        except openai.APIStatusError as error:
            used = (0, 0)
            raise self._refusal(error) from error
        except openai.APIConnectionError as error:
            raise NoReply("the connection broke", again=True) from error
        except Redirected as error:
            used = (0, 0)
            raise UserError(
                f"{self.name}.base_url={self.endpoint.base_url}: the server redirects to {self.mask(error.host)!r} "
                f"(HTTP {error.status}), and prompts go nowhere else by themselves. Set base_url to the address meant."
            ) from error
        finally:
            self.spending.settle(most, used)
            self.tokens.give_back(sum(most) - sum(used))
        return reply

    def _understand(self, content: bytes) -> tuple[str, Reply]:
        """Return the body of a chat completion, without the key, and the reply in it."""
        body = self.mask(decode(content))
        return body, read(body)

    def _refusal(self, error: Any) -> Exception:
        """What follows from an answer that is an error."""
        status, said = error.status_code, self._said(error)
        if status in REFUSED or (status == 429 and "insufficient_quota" in said):
            why = REFUSED.get(status, "says that the quota is spent")
            return UserError(f"{self.name}: {self.endpoint.base_url} {why} (HTTP {status}: {said}).")
        if (wait := retry_after(error.response.headers)) is not None and (status == 429 or status >= 500):
            if wait > PATIENCE:
                return UserError(
                    f"{self.name}: {self.endpoint.base_url} wants to be left alone for {wait:.0f} s. Every answer is "
                    "kept: the same command goes on then."
                )
            self.requests.rest(wait)
        if 400 <= status < 500 and TOO_LONG.search(said):
            return NoReply(f"the prompt is too long for the model (HTTP {status})", again=False)
        return NoReply(f"HTTP {status}", again=status in AGAIN or status >= 500)

    def _said(self, error: Any) -> str:
        """The server's words, without the key, which some repeat."""
        return " ".join(self.mask(error.response.text).split())[:200]

    def figures(self) -> dict[str, Any]:
        """What it came to: calls that all attempts at the node made, and answers kept from earlier ones."""
        spent = self.spending
        money = {"money": spent.money} if self.endpoint.price.known else {}
        counted = {"made": spent.calls, "kept": len(self.reused), "failed": dict(self.failures)}
        return counted | {"input_tokens": spent.input, "output_tokens": spent.output} | money


@contextmanager
def without_openai_variables() -> Iterator[None]:
    """Within, the environment lacks OpenAI's own variables: a key, an organisation, a project, any headers. A client
    sends to whoever is named what it finds of them when it is made, and no argument turns off the headers."""
    taken = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("OPENAI_")}
    try:
        yield
    finally:
        os.environ.update(taken)
