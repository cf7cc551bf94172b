"""The process that compiles and renders untrusted Jinja templates and parses YAML. `jinja_process.py` starts it.

A request is a line of JSON on standard input, and its reply a line on standard output. The system limits the memory. A
first timer interrupts Python and so finds the template's line. A second one ends an operation that never returns."""

import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes, pass_eval_context
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stages.sandbox import jinja_process as caller
from stages.sandbox.jinja_process import LENGTH, PER_BYTE, Refusal, TemplateFault, Unbounded

GRACE = 0.25  # seconds from the first timer to the second
AGAIN = 0.1  # seconds until the first timer interrupts again, if Jinja caught the exception
DEPTH = 30  # deepest nesting of a plain template
# Nodes whose output is at most a few times as long as their input: no loops, no calls and no arithmetic.
PLAIN = nodes.Output | nodes.TemplateData | nodes.Name | nodes.Const | nodes.If | nodes.CondExpr | nodes.Not
PLAIN |= nodes.And | nodes.Or
PLAIN_FILTERS = {"capitalize", "lower", "title", "trim", "upper"}


class Overrun(Exception):
    """A request that takes too much time, or renders too much text."""


class Generation(Extension):
    """The tag `{% generation %}`, which marks the assistant's text in a chat template. It records the marked spans."""

    tags = {"generation"}  # noqa: RUF012  # as its base has it

    def __init__(self, environment: Any):
        super().__init__(environment)
        self.position, self.spans = 0, list[tuple[int, int]]()  # characters rendered so far

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("measured"), [], [], body).set_lineno(line)

    @pass_eval_context
    def measured(self, _: EvalContext, caller: Callable[[], str]) -> str:
        text = caller()
        self.spans.append((self.position, self.position + len(text)))
        return text


Namespace: Any = ImmutableSandboxedEnvironment().globals["namespace"]


class PublicNamespace(Namespace):  # type: ignore[misc]  # a class that Jinja names by its global alone
    """A namespace that refuses names with a leading underscore, which might reach into Python."""

    def __init__(*args: Any, **attributes: Any) -> None:
        self, *mappings = args  # a template may have an attribute named self
        values = dict(*mappings, **attributes)
        any(map(refuse_private, values))
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        refuse_private(name)
        super().__setitem__(name, value)


def refuse_private(name: object) -> None:
    if str(name).startswith("_"):
        raise TemplateError(f"a namespace cannot have the attribute {name}")


class PublicDict:
    """The function `dict` for chat templates, which does not expose the class."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class Refused(TemplateError):
    """The message of a template that refuses a conversation."""


def raise_exception(message: str) -> None:
    raise Refused(message)


def chat_environment() -> ImmutableSandboxedEnvironment:
    """Return the environment that transformers gives chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False, indent=None, separators=None, sort_keys=False: (
        json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    )
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=PublicDict(),
        namespace=PublicNamespace,
    )
    return environment


TEXT, CHAT = caller.text_environment(), chat_environment()
MARKED: Any = CHAT.extensions[Generation.identifier]
COMPILED: dict[int, Template] = {}


def compiled(number: int, source: str, chat: bool, longest: int) -> tuple[list[str], bool]:
    """Store a compiled template under its number. Return the variables that it reads, and whether it is plain."""
    environment = CHAT if chat else TEXT
    COMPILED[number] = environment.from_string(source)
    parsed = environment.parse(source)
    return sorted(meta.find_undeclared_variables(parsed)), not chat and all(map(is_plain, parsed.body))


def is_plain(node: Node, depth: int = 0) -> bool:
    allowed = isinstance(node, PLAIN) or (
        isinstance(node, nodes.Filter) and node.name in PLAIN_FILTERS and not (node.args or node.kwargs)
    )
    return allowed and depth < DEPTH and all(is_plain(child, depth + 1) for child in node.iter_child_nodes())


def rendered(number: int, values: list[dict[str, Any]], longest: int) -> list[tuple[str, list[tuple[int, int]]]]:
    """Return each rendered text with the spans that `{% generation %}` marks in it."""
    template, texts, total = COMPILED[number], [], 0
    for variables in values:
        MARKED.position, MARKED.spans, pieces = 0, [], list[str]()
        for piece in template.root_render_func(template.new_context(variables)):
            MARKED.position += len(piece)
            if total + MARKED.position > longest:
                raise Overrun(f"it makes more than {longest:,} characters of {(longest - LENGTH) // PER_BYTE:,} bytes")
            pieces.append(piece)
        total += MARKED.position
        texts.append(("".join(pieces), MARKED.spans))
        texts[-1][0].encode()
    return texts


def load_yaml(text: str, longest: int) -> Any:
    import yaml

    return yaml.safe_load(text)


DO: dict[str, Callable[..., Any]] = {"compile": compiled, "render": rendered, "load_yaml": load_yaml}


def line_of(error: BaseException) -> int | None:
    """Return the line of the template that raised an error, or None."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    line, trace = None, error.__traceback__
    while trace:
        if template := trace.tb_frame.f_globals.get("__jinja_template__"):
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line


def interrupt(*_: object) -> None:
    raise Overrun(caller.TOO_LONG)


def reply(request: bytes) -> bytes:
    """Return the reply to a request, as a line of JSON."""
    seconds, longest = caller.SECONDS + len(request) / caller.SPEED, LENGTH + PER_BYTE * len(request)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = caller.MEMORY + PER_BYTE * len(request)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds + GRACE)
        signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN)
        named = json.loads(request)
        answer = json.dumps({"made": DO[named.pop("do")](**named, longest=longest)}, default=str).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        return answer
    except Exception as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        raised, reason = fault_of(error)
        where = f"line {line}: " if (line := line_of(error)) else ""
        return json.dumps({"raised": raised.__name__, "reason": where + reason}).encode()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def fault_of(error: Exception) -> tuple[type[Exception], str]:
    """Return the exception that the calling process raises for an error, and the reason in words."""
    match error:
        case Overrun():
            return Unbounded, str(error)
        case MemoryError():
            return Unbounded, caller.TOO_LARGE
        case RecursionError():
            return TemplateFault, "it is nested too deeply, or a macro calls itself"
        case UnicodeEncodeError():
            return TemplateFault, caller.HALF
        case UndefinedError() | Refused():
            return Refusal, in_one_line(error)
        case _:
            return TemplateFault, f"{type(error).__name__}: {in_one_line(error)}"


def in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is handled by the calling process
    signal.signal(signal.SIGPROF, interrupt)
    for request in sys.stdin.buffer:
        sys.stdout.buffer.write(reply(request) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
