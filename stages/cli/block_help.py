"""`--help=BLOCK`: the rows of docs/configuration.md about a block and its group."""

import re
from html import unescape

from stages.cli.recipes import BLOCKS
from stages.config.errors import UserError, nearest
from stages.config.schema import DOCS

SECTION = re.compile(r"^### (\S+?)=?$(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (`.*) \|$", re.MULTILINE)
LINK, MARKUP = re.compile(r"\[([^]]*)\]\([^)]*\)"), re.compile(r"`|\\(?=\|)")


def page(name: str) -> str:
    """Return a line for every option of a group and every key of a block: its default, its type, and what it is for.

    Raises:
        UserError: for a name that no group, block or key has.
    """
    blocks, known, lines = (name, *BLOCKS.get(name, ())), set[str](), []
    for title, section in SECTION.findall((DOCS / "configuration.md").read_text(encoding="utf-8")):
        for row in ROW.findall(section):
            key, *cells = unescape(MARKUP.sub("", LINK.sub(r"\1", row))).split(" | ")
            known |= {title, key}
            if title in blocks or any(f"{key}.".startswith(f"{block}.") for block in blocks):
                kind, default, *meaning = cells if len(cells) == 3 else (*cells, "")
                lines.append(f"{key:40} {default:24} {'; '.join(filter(None, (kind, *meaning)))}")
    if not lines:
        raise UserError(f"--help={name}: no group, block or key has this name.{nearest(name, sorted(known))}")
    return "\n".join(lines)
