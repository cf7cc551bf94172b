"""Untrusted Jinja templates and YAML files, processed in a separate process with limits.

A template is a program: it may loop for ever, or fill the memory in one operation that nothing can interrupt. So it
runs in a process with limits on time and memory (`jinja_worker.py`). That process starts with the first template, and
is replaced after it exceeds a limit. It reads no file, and its environment has no API keys.

A template with only text, variables and conditions is harmless: its output is not much longer than its input. Once the
process has confirmed this, the template is rendered in this process, which saves a message per row."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from stages.config.errors import UserError

SECONDS = 1.0  # of computing time per request
SPEED = 1_000_000  # bytes of a request for each further second
MEMORY = 1 << 28  # bytes that the process may use
PER_BYTE = 16  # further bytes of memory, and characters of text, per byte of a request
LENGTH = 1 << 20  # characters of rendered text
TOO_LONG = f"it computes for longer than {SECONDS:g} s"
TOO_LARGE = f"it takes more than {MEMORY >> 20} MiB of memory"
HALF = "it makes half of a surrogate pair, which no file can hold"
INHERITED = {"PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "TZ"}  # environment variables


class TemplateFault(UserError):
    """A template that cannot be compiled, or not rendered with its values: `line N: REASON`."""


class Refusal(TemplateFault):
    """A template that refuses its values: it reads a missing variable, or raises an exception itself."""


class Unbounded(UserError):
    """A template that takes too much time or memory, or renders too much text: `line N: REASON`."""


@contextmanager
def name_setting(setting: str, way_out: str) -> Iterator[None]:
    """Add the template's setting and the way out to errors of a template that is used inside."""
    try:
        yield
    except (TemplateFault, Unbounded) as error:
        raise type(error)(f"{setting}: {error}. {way_out}") from error


RAISED = {error.__name__: error for error in (TemplateFault, Refusal, Unbounded)}


class Facts(NamedTuple):
    """The variables that a template reads. `plain`: it has only text, variables and conditions."""

    names: set[str]
    plain: bool


class Rendered(NamedTuple):
    """A rendered text, and the spans of characters (start, end) that `{% generation %}` marks."""

    text: str
    spans: list[tuple[int, int]]


class JinjaProcess:
    """The process that renders templates for this one."""

    def __init__(self) -> None:
        self.lock, self.numbers = threading.Lock(), itertools.count()
        self.compiled_templates = dict[tuple[str, bool], tuple[int, Facts]]()  # by template, its number in the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stages.sandbox.jinja_worker"],
            cwd=Path(__file__).parents[2],
            env={name: os.environ[name] for name in INHERITED & os.environ.keys()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, **request: Any) -> Any:
        """Return the answer to a request.
        Raise TemplateFault if the template cannot be compiled or rendered. Unbounded: if the process exceeded a limit.
        It is ended."""
        assert self.process.stdin and self.process.stdout
        line = json.dumps(request).encode() + b"\n"
        reply: dict[str, Any] = {"raised": Unbounded.__name__, "reason": TOO_LARGE}  # if the process ends silently
        try:
            with self.lock:
                self.process.stdin.write(line)
                self.process.stdin.flush()
                answer = self.process.stdout.readline()
            if answer.endswith(b"\n"):
                reply = json.loads(answer)
            elif -self.process.wait() == signal.SIGVTALRM:
                reply["reason"] = TOO_LONG
        except BrokenPipeError:
            pass
        except BaseException:  # an interrupt leaves an answer unread
            self.end()
            raise
        if error := RAISED.get(reply.get("raised", "")):
            if error is Unbounded:
                self.end()
            raise error(reply["reason"])
        return reply["made"]

    def end(self) -> None:
        """End the process. The next request starts a new one."""
        RUNNING.pop(os.getpid(), None)
        self.process.kill()
        self.process.communicate()

    def compiled(self, source: str, chat: bool) -> tuple[int, Facts]:
        """Return the number of a template in the process, and the facts about it."""
        if (source, chat) not in self.compiled_templates:
            number = next(self.numbers)
            names, plain = self.ask(do="compile", number=number, source=source, chat=chat)
            self.compiled_templates[source, chat] = number, Facts({*names}, plain)
        return self.compiled_templates[source, chat]


RUNNING: dict[int, JinjaProcess] = {}  # by the id of the process that it serves, since a fork needs another one


def running_process() -> JinjaProcess:
    """Return the process that renders for this one. Start it if there is none."""
    if (process := RUNNING.get(os.getpid())) is None:
        process = RUNNING[os.getpid()] = JinjaProcess()
    return process


def read_facts(source: str, chat: bool = False) -> Facts:
    """Return the facts about a template, compiled as a chat template or as a plain text template.
    Raise TemplateFault if it is not valid Jinja. Unbounded: if compiling takes too much time or memory."""
    return running_process().compiled(source, chat)[1]


def render(source: str, values: Sequence[Mapping[str, Any]], chat: bool = False) -> list[Rendered]:
    """Return the template rendered with each of these mappings of variables.
    Raise TemplateFault if one of them cannot be rendered. Unbounded: if it takes too much time, memory or text."""
    process = running_process()
    number, facts = process.compiled(source, chat)
    if facts.plain:
        return [Rendered(plain_renderer(source)(each), []) for each in values]
    spans_by_text = process.ask(do="render", number=number, values=values)
    return [Rendered(text, [(start, end) for start, end in spans]) for text, spans in spans_by_text]


@lru_cache(maxsize=256)
def plain_renderer(source: str) -> Callable[[Mapping[str, Any]], str]:
    """Return a function that renders a plain template in this process."""
    from jinja2 import UndefinedError  # imported late, as it takes a tenth of a second

    template = text_environment().from_string(source)

    def text(values: Mapping[str, Any]) -> str:
        try:
            text: str = template.render(values)
            text.encode()
        except UndefinedError as error:
            raise Refusal(str(error)) from error
        except UnicodeEncodeError as error:
            raise TemplateFault(HALF) from error
        return text

    return text


@cache
def text_environment() -> Any:
    """Return the Jinja environment of rubrics and task phrasings, in which a missing variable is an error."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined)


def load_yaml(text: str) -> Any:
    """Return the content of a YAML file. Raise TemplateFault if invalid. Unbounded: if its aliases expand too much."""
    return running_process().ask(do="load_yaml", text=text)
