"""`stage=context`: one page for programs that type commands, from a preference file to a verdict.

Its commands are in context.yaml. Result objects come from their dataclasses, exit codes, words and recipes from the
files that define them, and tables from docs/reference/."""

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from stages.commands.compare import CompareResult
from stages.commands.doctor import DoctorResult
from stages.commands.gate import GateResult
from stages.commands.plan import PlanResult
from stages.commands.planning.calculated import CalculatedPlan
from stages.commands.result import Reply, Result
from stages.commands.run_result import RunResult
from stages.config.choices import Command
from stages.config.exit_codes import MEANINGS
from stages.config.installation import program, read_beside
from stages.config.schema import CONF, DOCS, RECIPES, Config, Target
from stages.pages.glossary import GLOSSARY

TEXTS = read_beside(__file__)
# The dataclass of `result` by command
RESULTS: dict[str, type[Result]] = {
    "a run": RunResult,
    "plan": PlanResult,
    "plan with plan.gpu": CalculatedPlan,
    "compare": CompareResult,
    "gate": GateResult,
    "doctor": DoctorResult,
}
JSON_TYPES = {str: "text", Path: "path", int: "number", float: "number", bool: "true or false"}
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")


@dataclass
class ContextResult(Result):
    """`page`: Markdown. `commands`: its commands."""

    page: str
    commands: list[str]

    def show(self) -> None:
        sys.stdout.write(f"{self.page}\n")


def run(*_: object) -> ContextResult:
    """Return the page."""
    typed = " ".join(program())
    commands = [f"{typed} {each['line'].format()}" for each in TEXTS["commands"]]
    sections = {
        "Commands": [*command_lines(commands)],
        "Files": [*table("data-formats.md", "| format |")],
        "Results": [TEXTS["reading"], *(f"- *{word}*: {text}" for word, text in GLOSSARY.items())],
        "JSON": [*result_lines()],
        "Exit codes": exit_code_table(),
        "Stages": table("stages-and-files.md", "| stage |"),
        "All commands": [*help_lines()],
        "Recipes": [*recipe_lines()],
        "Settings": [settings_line(typed)],
    }
    parts = ["# Plumbline", TEXTS["head"].format(program=typed)]
    for title, lines in sections.items():
        parts += [f"## {title}", "\n".join(lines)]
    return ContextResult("\n\n".join(parts), commands)


def command_lines(commands: list[str]) -> Iterator[str]:
    """Yield the numbered commands, each with what it does, costs and refuses."""
    for number, (command, texts) in enumerate(zip(commands, TEXTS["commands"], strict=True), 1):
        yield f"{number}. `{command}`"
        yield f"   {texts['does']}. Costs: {texts['costs']}. Refuses: {texts['refuses']}."


def table(page: str, head: str) -> list[str]:
    """Return the lines of the table in a page of docs/reference/ that begins with `head`, without links."""
    lines = (DOCS / "reference" / page).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [LINK.sub(r"\1", line) for line in lines[start:end]]


def help_lines() -> Iterator[str]:
    """Yield what `--help` says of every word of `stage=` that builds no node."""
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    for word in Command:
        if described := re.search(rf"  {word} {{2,}}(\S.*?)( {{3,}}|$)", text, re.MULTILINE):
            yield f"- `stage={word}`: {described[1]}"


def exit_code_table() -> list[str]:
    """Return the table of exit codes, as docs/reference/stages-and-files.md has it."""
    rows = [f"| {code} | {other} | {gate} |" for code, (other, gate) in MEANINGS.items()]
    return ["| code | any command | `stage=gate` |", "| --- | --- | --- |", *rows]


def result_lines() -> Iterator[str]:
    """Yield the keys of the object of `--json`, then those of `result` for every command."""
    for title, kind in {"every command": Reply, **RESULTS}.items():
        yield f"- {title}: `{outline(kind)}`. {' '.join(inspect.cleandoc(str(kind.__doc__)).split())}"


def outline(hint: Any) -> str:
    """Return the shape of a type's JSON: `{nodes: [{name: text}], page: path or null}`."""
    inner, kind = typing.get_args(hint), typing.get_origin(hint) or hint
    if kind in (types.UnionType, typing.Union):
        return " or ".join(map(outline, inner))
    if kind is Result:
        return "of the command"
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return (
            f"{{{', '.join(f'{each.name}: {outline(hints[each.name])}' for each in fields(kind))}}}"
        )
    if kind is dict:
        return f"{{NAME: {outline(inner[1])}}}"
    if kind in (list, tuple):
        return f"[{outline(inner[0])}]"
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        return "number"
    return JSON_TYPES.get(kind, "null" if kind is type(None) else "any")


def recipe_lines() -> Iterator[str]:
    """Yield the first sentence of every recipe."""
    for path in sorted(RECIPES.glob("*.yaml")):
        head = re.match(r"(# .*\n)+", path.read_text(encoding="utf-8"))
        text = " ".join(re.sub("^# ", "", line) for line in head[0].splitlines()) if head else ""
        yield f"- `recipe={path.stem}`: {text.partition('. ')[0].rstrip('.')}."


def settings_line(typed: str) -> str:
    """Return the line that names the blocks of settings, and the command that shows their keys."""
    blocks = [
        each.name for each in fields(Config) if is_dataclass(each.type) or each.name in [*Target]
    ]
    return f"`{typed} --help=BLOCK` shows the keys of a block: {', '.join(blocks)}."
