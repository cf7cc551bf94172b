"""`stage=context`: one page for programs that type commands, from a preference file to a verdict.

Its text is context.md.jinja. Exit codes come from the file that defines them, and tables from docs/reference/."""

import re
import sys
from dataclasses import dataclass, fields, is_dataclass

from stages.commands.documents import render
from stages.commands.result import Result
from stages.config.exit_codes import MEANINGS
from stages.config.installation import program
from stages.config.schema import DOCS, Config, Target
from stages.pages.glossary import GLOSSARY

COMMAND = re.compile(r"^\d+\. `(.*)`$", re.MULTILINE)
MARKDOWN_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")


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
        formats=reference_table("data-formats.md", "| format |"),
        glossary=GLOSSARY,
        exit_codes=MEANINGS,
        stages=reference_table("stages-and-files.md", "| stage |"),
        blocks=blocks,
    )
    return ContextResult(page, COMMAND.findall(page))


def reference_table(page: str, beginning: str) -> str:
    """Return the table in a page of docs/reference/ that begins with `beginning`, without links."""
    text = (DOCS / "reference" / page).read_text(encoding="utf-8")
    table_and_rest = text[text.index(f"\n{beginning}") + 1 :]
    table, _, _ = table_and_rest.partition("\n\n")
    return MARKDOWN_LINK.sub(r"\1", table)
