"""`stage=context`: one page for programs that type commands, from a preference file to a verdict.

Its commands and notes are in command.yaml, the page's text in context.md.jinja. Exit codes come from the file that
defines them, and tables from docs/reference/."""

import re
import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from stages.commands.documents import render
from stages.commands.result import Result
from stages.config.exit_codes import meanings
from stages.config.installation import program, read_beside
from stages.config.schema import DOCS, RunConfig
from stages.config.stage_table import Target
from stages.pages.glossary import GLOSSARY

TEXTS = read_beside(__file__)
MARKDOWN_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
CELL_BORDER = re.compile(r"\s*(?<!\\)\|\s*")
# the tables in docs/reference/: a page, and how its table begins
FORMATS = "data-formats.md", "| format |"
STAGES = "stages-and-files.md", "| stage |"


@dataclass
class ContextCommand:
    """A command as it is typed, what it does, what it costs, and what it refuses."""

    command: str
    does: str
    costs: str
    refuses: str


@dataclass
class DescribedCode:
    """An exit code: what it means of `stage=gate`, and of every other command; '' where it does not occur."""

    code: int
    meaning: str
    gate: str


@dataclass
class ContextResult(Result):
    """`files`: the rows of the table of formats. `stages`: those of the table of stages. `results`: how a result is read.
    `terms`: words and their meanings. `settings`: the blocks of keys."""

    commands: list[ContextCommand]
    files: list[dict[str, str]]
    results: list[str]
    terms: dict[str, str]
    exit_codes: list[DescribedCode]
    stages: list[dict[str, str]]
    settings: list[str]

    @property
    def page(self) -> str:
        """The same in Markdown."""
        return render(
            Path(__file__).with_name("context.md.jinja"),
            program=" ".join(program()),
            commands=self.commands,
            formats=reference_table(*FORMATS),
            results=self.results,
            glossary=self.terms,
            exit_codes=self.exit_codes,
            stages=reference_table(*STAGES),
            blocks=self.settings,
        )

    def show(self) -> None:
        sys.stdout.write(self.page)


def run(*_: object) -> ContextResult:
    """Return the commands, formats, notes, exit codes, stages and blocks of settings."""
    blocks = [
        each.name for each in fields(RunConfig) if is_dataclass(each.type) or each.name in [*Target]
    ]
    return ContextResult(
        commands=[describe_command(**texts) for texts in TEXTS["commands"]],
        files=table_rows(reference_table(*FORMATS)),
        results=TEXTS["results"],
        terms=GLOSSARY,
        exit_codes=[DescribedCode(code, other, gate) for code, (other, gate) in meanings().items()],
        stages=table_rows(reference_table(*STAGES)),
        settings=blocks,
    )


def describe_command(arguments: str, does: str, costs: str, refuses: str) -> ContextCommand:
    """Return a command of context.yaml, with the program that starts it."""
    return ContextCommand(" ".join([*program(), arguments]), does, costs, refuses)


def reference_table(page: str, beginning: str) -> str:
    """Return the table in a page of docs/reference/ that begins with `beginning`, without links."""
    text = (DOCS / "reference" / page).read_text(encoding="utf-8")
    table_and_rest = text[text.index(f"\n{beginning}") + 1 :]
    table, _, _ = table_and_rest.partition("\n\n")
    return MARKDOWN_LINK.sub(r"\1", table)


def table_rows(table: str) -> list[dict[str, str]]:
    """Return the rows of a Markdown table: the text of each cell by the head of its column."""
    head, _, *lines = table.splitlines()
    return [dict(zip(cells(head), cells(line), strict=True)) for line in lines]


def cells(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table, which begins and ends with a border."""
    return CELL_BORDER.split(line.strip())[1:-1]
