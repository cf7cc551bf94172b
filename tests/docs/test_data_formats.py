"""Keep the table of column names in `docs/reference/data-formats.md` equal to the names that the formats try.

`python -m tests.docs.test_data_formats` writes the table again.
"""

import re

from stages.config.installation import ROOT
from stages.formats.column_mapping import FORMATS
from stages.formats.format import STATED

PAGE = ROOT / "docs" / "reference" / "data-formats.md"
HEAD = "| role | column names |\n|---|---|\n"
TABLE = re.compile(re.escape(HEAD) + r"(\|.*\n)*")
# Of the two answers of a comparison, the ends of the names decide.
SIDES = {"a": "response_a, output_1, answer_0 …", "b": "response_b, output_2, answer_1 …"}


def names_by_role() -> dict[str, list[str]]:
    """Return the column names of each role, in the order in which they are tried."""
    names: dict[str, list[str]] = {}
    for kinds in FORMATS.values():
        for kind in kinds:
            for role, columns in kind.roles.items():
                names.setdefault(role, []).extend(columns.split())
    models = " ".join(kind.models for kinds in FORMATS.values() for kind in kinds)
    names["model"] = ["model_name", *(name.replace("+", " with ") for name in models.split())]
    return {role: list(dict.fromkeys(columns)) for role, columns in names.items()}


def table() -> str:
    rows = [
        f"| `{role}` | {SIDES.get(role) or ', '.join(names)} |\n"
        for role, names in names_by_role().items()
        if "rejected" not in role  # as chosen
    ]
    only_named = ", ".join(f"`{role}`" for role in STATED if role not in names_by_role())
    return "".join([HEAD, *rows, f"| {only_named} | none: `columns` names them |\n"])


def test_the_page_has_the_names_that_the_formats_try() -> None:
    found = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert found and found[0] == table()


if __name__ == "__main__":
    content = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), content), encoding="utf-8")
