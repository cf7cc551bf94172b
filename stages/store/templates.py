"""Render untrusted Jinja templates in Jinja's own sandbox, with errors that name the template's line.

The sandbox keeps a template from Python and from the files. It bounds neither time nor memory, so `guard_template`
stops the first rendering, on made-up values, of a template that does not end."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from traceback import walk_tb
from typing import Any

from stages.config.errors import UserError

SECONDS = 5.0  # of computing time, which a busy machine does not change
AGAIN = 0.5  # seconds until the template is stopped again, if something caught the exception
# the names of a text in the tracebacks that Jinja rewrites
JINJA_FILES = ("<template>", "<unknown>")


class TemplateFault(UserError):
    """A template that cannot be rendered with its values: `line N: REASON`."""


class Refusal(TemplateFault):
    """A template that refuses its values: it reads a missing variable, or raises an exception itself."""


class Forbidden(TemplateFault):
    """A template that reaches for Python, which the sandbox forbids."""


@contextmanager
def template_errors() -> Iterator[None]:
    """Raise the errors of a template used inside as TemplateFault, or as UserError if it is invalid or too slow."""
    # imported late: a tenth of a second
    from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError
    from jinja2.exceptions import SecurityError

    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        refused = isinstance(error, UndefinedError) or type(error) is TemplateError
        lines = [
            line
            for frame, line in walk_tb(error.__traceback__)
            if frame.f_code.co_filename in JINJA_FILES
        ]
        message = f"line {lines[-1]}: " if lines else ""
        message += (
            reason
            if refused or isinstance(error, TimeoutError)
            else f"{type(error).__name__}: {reason}"
        )
        if isinstance(error, TemplateSyntaxError | TimeoutError):
            raise UserError(message) from error
        if isinstance(error, SecurityError):
            raise Forbidden(message) from error
        raise (Refusal if refused else TemplateFault)(message) from error


@contextmanager
def guard_template(setting: str, way_out: str) -> Iterator[None]:
    """Add setting and way out to errors of a template used inside. In the main thread, stop it after SECONDS."""
    # only this thread can handle signals
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGVTALRM, stop_computing) if main else None
    if main:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, AGAIN)
    try:
        yield
    except (UserError, TimeoutError) as error:
        raise UserError(f"{setting}: {error}. {way_out}") from error
    finally:
        if main:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, handler)


def stop_computing(*_: object) -> None:
    raise TimeoutError(f"it computes for longer than {SECONDS:g} s")


@cache
def environment() -> Any:
    """Return the Jinja environment of rubrics and task phrasings, in which a missing variable is an error."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined)


@lru_cache(maxsize=256)
def compiled(source: str) -> Any:
    return environment().from_string(source)


def render(source: str, values: Mapping[str, Any]) -> str:
    """Return the text of a rubric or phrasing with these variables.
    Raise TemplateFault if it cannot be rendered with them. UserError: if it is not valid Jinja."""
    with template_errors():
        text: str = compiled(source).render(values)
        return text


def read_variables(source: str) -> set[str]:
    """Return the variables that a template reads. Raise UserError if it is not valid Jinja."""
    from jinja2.meta import find_undeclared_variables

    with template_errors():
        return find_undeclared_variables(environment().parse(source))
