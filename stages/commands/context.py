"""`stage=context`: one page for programs that type commands, from a preference file to a verdict.

Its text is context.md.jinja. Result objects come from their dataclasses, exit codes, words and recipes from the files
that define them, and tables from docs/reference/."""

import inspect
import re
import sys
import types
import typing
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from stages.commands.compare import CompareResult
from stages.commands.doctor import DoctorResult
from stages.commands.documents import render
from stages.commands.gate import GateResult
from stages.commands.plan import PlanResult
from stages.commands.planning.calculated import CalculatedPlan
from stages.commands.result import Reply, Result
from stages.commands.run_result import RunResult
from stages.config.choices import Command
from stages.config.exit_codes import MEANINGS
from stages.config.installation import program
from stages.config.schema import CONF, DOCS, RECIPES, Config, Target
from stages.pages.glossary import GLOSSARY

# The dataclasses of the object and of its `result`, by command
RESULTS: dict[str, type[Reply | Result]] = {
    "every command": Reply,
    "a run": RunResult,
    "plan": PlanResult,
    "plan with plan.gpu": CalculatedPlan,
    "compare": CompareResult,
    "gate": GateResult,
    "doctor": DoctorResult,
}
JSON_TYPES = {str: "text", Path: "path", int: "number", float: "number", bool: "true or false"}
COMMAND = re.compile(r"^\d+\. `(.*)`$", re.MULTILINE)
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")


@dataclass
class ContextResult(Result):
    """`page`: Markdown. `commands`: its commands."""

    page: str
    commands: list[str]

    def show(self) -> None:
        sys.stdout.write(self.page)


def run(*_: object) -> ContextResult:
    """Return the page."""
    blocks = [
        each.name for each in fields(Config) if is_dataclass(each.type) or each.name in [*Target]
    ]
    page = render(
        "context.md.jinja",
        program=" ".join(program()),
        formats=table("data-formats.md", "| format |"),
        glossary=GLOSSARY,
        shapes={title: describe(kind) for title, kind in RESULTS.items()},
        exit_codes=MEANINGS,
        stages=table("stages-and-files.md", "| stage |"),
        words=words_of_help(),
        recipes={path.stem: first_sentence(path) for path in sorted(RECIPES.glob("*.yaml"))},
        blocks=blocks,
    )
    return ContextResult(page, COMMAND.findall(page))


def table(page: str, head: str) -> str:
    """Return the table in a page of docs/reference/ that begins with `head`, without links."""
    text = (DOCS / "reference" / page).read_text(encoding="utf-8")
    rest = text[text.index(f"\n{head}") + 1 :]
    return LINK.sub(r"\1", rest.partition("\n\n")[0])


def words_of_help() -> dict[str, str]:
    """Return what `--help` says of every word of `stage=` that builds no node."""
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    words = {}
    for word in Command:
        described = re.search(rf"  {word} {{2,}}(\S.*?)( {{3,}}|$)", text, re.MULTILINE)
        if described:
            words[str(word)] = described[1]
    return words


def describe(kind: type) -> str:
    """Return the shape of a dataclass's JSON, and its docstring."""
    return f"`{outline(kind)}`. {' '.join(inspect.cleandoc(str(kind.__doc__)).split())}"


def outline(hint: Any) -> str:
    """Return the shape of a type's JSON: `{nodes: [{name: text}], page: path or null}`."""
    inner = typing.get_args(hint)
    kind = typing.get_origin(hint) or hint
    if kind in (types.UnionType, typing.Union):
        return " or ".join(map(outline, inner))
    if kind is Result:
        return "of the command"
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        keys = [f"{each.name}: {outline(hints[each.name])}" for each in fields(kind)]
        return f"{{{', '.join(keys)}}}"
    if kind is dict:
        return f"{{NAME: {outline(inner[1])}}}"
    if kind in (list, tuple):
        return f"[{outline(inner[0])}]"
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        return "number"
    return JSON_TYPES.get(kind, "null" if kind is type(None) else "any")


def first_sentence(recipe: Path) -> str:
    """Return the first sentence of a recipe's comment, without its full stop."""
    head = recipe.read_text(encoding="utf-8").partition("\n\n")[0]
    comment = [line.removeprefix("# ") for line in head.splitlines() if line.startswith("# ")]
    return " ".join(comment).partition(". ")[0].rstrip(".")
