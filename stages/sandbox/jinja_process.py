"""Jinja templates and YAML of others, handled by a process of its own.

A template is a program: it may loop for ever, or ask for all memory in one operation that nothing can interrupt. So it
runs in a process with bounds (`jinja_worker.py`), which is started with the first template, lives as long as this one,
and is replaced where a bound ended it. That process reads no file and knows no variable with a key.

A template that holds only text, variables and conditions can make no more than itself and what it shows. Once the
process has found that, the template is rendered here, where a row costs no message to another process.
"""

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

SECONDS = 1.0  # of computing, for a request
SPEED = 1_000_000  # bytes of a request that get another second
MEMORY = 1 << 28  # bytes of the whole process
PER_BYTE = 16  # bytes of memory, and characters of text, that each byte of a request adds
LENGTH = 1 << 20  # characters of text
TOO_LONG = f"it computes for longer than {SECONDS:g} s"
TOO_LARGE = f"it takes more than {MEMORY >> 20} MiB of memory"
HALF = "it makes half of a surrogate pair, which no file can hold"
INHERITED = {"PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "TZ"}  # environment variables


class TemplateFault(UserError):
    """A template that cannot be compiled, or not be rendered with these values: `line N: REASON`."""


class Refusal(TemplateFault):
    """A template that has no text for these values: it reads what they do not have, or says so itself."""


class Unbounded(UserError):
    """A template that takes too much time or memory, or makes too much text: `line N: REASON`."""


@contextmanager
def name_setting(setting: str, way_out: str) -> Iterator[None]:
    """Around the use of a template: its errors name the setting that it comes from, and the way out."""
    try:
        yield
    except (TemplateFault, Unbounded) as error:
        raise type(error)(f"{setting}: {error}. {way_out}") from error


RAISED = {error.__name__: error for error in (TemplateFault, Refusal, Unbounded)}


class Facts(NamedTuple):
    """The variables that a template reads, and whether it is as bounded as text is."""

    names: set[str]
    plain: bool


class Rendered(NamedTuple):
    """A text, and from where to where `{% generation %}` marks it."""

    text: str
    spans: list[tuple[int, int]]


class JinjaProcess:
    """The process that renders for this one."""

    def __init__(self) -> None:
        self.lock, self.numbers = threading.Lock(), itertools.count()
        self.compiled_templates = dict[
            tuple[str, bool], tuple[int, Facts]
        ]()  # templates, with their number over there
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

        Raises:
            TemplateFault: where the template cannot be compiled or rendered.
            Unbounded: where the process overran a bound; it is ended.
        """
        assert self.process.stdin and self.process.stdout
        line = json.dumps(request).encode() + b"\n"
        reply: dict[str, Any] = {"raised": Unbounded.__name__, "reason": TOO_LARGE}  # what else ends that process
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
        except BaseException:  # an interrupt, which leaves an answer unread
            self.end()
            raise
        if error := RAISED.get(reply.get("raised", "")):
            if error is Unbounded:
                self.end()
            raise error(reply["reason"])
        return reply["made"]

    def end(self) -> None:
        """End the process. The next request starts another."""
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


RUNNING: dict[int, JinjaProcess] = {}  # by the process that it renders for: a fork has its own


def running_process() -> JinjaProcess:
    """Return this process's renderer, started where there is none."""
    if (process := RUNNING.get(os.getpid())) is None:
        process = RUNNING[os.getpid()] = JinjaProcess()
    return process


def read_facts(source: str, chat: bool = False) -> Facts:
    """Return what a template reads, compiled as a chat template or as text.

    Raises:
        TemplateFault: where it is not Jinja.
        Unbounded: where it takes too much to compile.
    """
    return running_process().compiled(source, chat)[1]


def render(source: str, values: Sequence[Mapping[str, Any]], chat: bool = False) -> list[Rendered]:
    """Return what a template makes of each of these values.

    Raises:
        TemplateFault: where it cannot be rendered with one of them.
        Unbounded: where it takes too much time or memory, or makes too much text.
    """
    process = running_process()
    number, facts = process.compiled(source, chat)
    if facts.plain:
        return [Rendered(plain_renderer(source)(each), []) for each in values]
    spans_by_text = process.ask(do="render", number=number, values=values)
    return [Rendered(text, [(start, end) for start, end in spans]) for text, spans in spans_by_text]


@lru_cache(maxsize=256)
def plain_renderer(source: str) -> Callable[[Mapping[str, Any]], str]:
    """Return what renders a plain template in this process."""
    from jinja2 import UndefinedError  # spares those who render nothing a tenth of a second

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
    """Return the environment of rubrics and phrasings, in which a variable that is not there is an error."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined)


def load_yaml(text: str) -> Any:
    """Return the content of a YAML file, as JSON holds it.

    Raises:
        TemplateFault: where it is not YAML.
        Unbounded: where its aliases make too much of it.
    """
    return running_process().ask(do="load_yaml", text=text)
