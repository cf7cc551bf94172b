"""Keep `docs/reference/configuration.md` equal to the rows of `--help=NAME`, and to the heads of conf/ and recipes/.

`python -m tests.docs.test_configuration` writes it again: run it after changing a key, a default or a comment.
"""

import re

from stages.cli import help, settings
from stages.cli.help import Row
from stages.cli.recipe_layers import built_in_recipes
from stages.config.installation import ROOT

PAGE = ROOT / "docs" / "reference" / "configuration.md"
HEAD = """# Configuration

<!-- Made from stages/config/, conf/ and recipes/ by: python -m tests.docs.test_configuration -->

The command line sets any key: `python run.py dpo.beta=0.05`. A group sets several keys at once, by the option that it
is given: `python run.py pairs=margin`. A recipe sets keys of all groups. Groups come first, then the recipe, then the
keys of the command line.

A default below is what the groups set. Where `recipe=demo`, which runs unless another recipe is named, sets another
value, that stands beside it. `${precision}` is the value of the key `precision`. Keys under `runtime` do not enter a
fingerprint ([guarantees](../explanation/guarantees.md)). Every `trainer` has the keys of
[TrainerArguments](#trainerarguments) too. Blocks that stand in lists, such as `Source`, come last. If the meaning is another key, that key's row has
type and meaning. `>0–1` are the numbers from 0 to 1 without 0.
"""
LISTED = re.compile(rf"\b(of )({'|'.join(help.LISTED)})\b")


def code(text: str) -> str:
    """Return a default as code, and its demo's."""
    if text in ("", "required"):
        return text
    return "; demo: ".join(f"`{part}`" for part in text.split("; demo: "))


def shortened(rows: list[Row]) -> list[Row]:
    """Return the rows in Markdown. A row whose type and meaning an earlier key of the same name has names that key."""
    first: dict[tuple[str, str, str], str] = {}
    cells = list[Row]()
    for row in rows:
        place = (row.name.rpartition(".")[2], row.kind, row.meaning)
        earlier = first.setdefault(place, row.name)
        kind = LISTED.sub(lambda match: f"{match[1]}[{match[2]}](#{match[2].lower()})", row.kind)
        meaning = row.meaning.replace("<", "&lt;")
        if earlier != row.name and " " in row.meaning:
            kind = ""
            meaning = f"`{earlier}`"
        cells.append(Row(f"`{row.name}`", kind, code(row.default), meaning))
    return cells


def table(*rows: tuple[str, ...]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:], ""]


def groups() -> list[str]:
    lines = list[str]()
    defaults = settings.default_options()
    for group, files in settings.option_files().items():
        rows = [("option", "what it sets")]
        for path in files:
            mark = " (default)" if defaults.get(group) == path.stem else ""
            meaning = settings.first_comment(path).replace("<", "&lt;")
            rows.append((f"`{group}={path.stem}`{mark}", meaning))
        lines += [f"### {group}=", "", *table(*rows)]
    return lines


def recipes() -> list[str]:
    rows = [("recipe", "what it is", "hardware")]
    for path in sorted(built_in_recipes(), key=lambda path: path.stem):
        hardware = re.search(r"^#   hardware: *(.*)$", path.read_text(), flags=re.MULTILINE)
        mark = " (default)" if settings.default_options()["recipe"] == path.stem else ""
        name = f"[`recipe={path.stem}`](../../{path.relative_to(ROOT)}){mark}"
        rows.append((name, settings.first_comment(path), hardware[1] if hardware else ""))
    return table(*rows)


def keys() -> list[str]:
    """Return a table of keys for all runs, for each block, for each option with its own, and for each listed block."""
    tables: dict[str, list[Row]] = {}
    in_every_run = list[Row]()
    in_lists = list[Row]()
    for title, rows in help.sections():
        if title not in settings.option_files():
            (in_lists if title in help.LISTED else in_every_run).extend(rows)
            for row in rows:
                block = row.name.partition(".")[0]
                is_block = "." in row.name or row.kind == "block"
                heading = title if title != "every run" else block if is_block else "Of every run"
                tables.setdefault(heading, []).append(row)
    # TrainerArguments and Source first, as rows of blocks refer to them
    ordered = [*in_lists, *in_every_run]
    short = dict(zip(ordered, shortened(ordered), strict=True))
    arguments = [short[row] for row in in_lists if row.name.startswith("TrainerArguments.")]
    # a row that only repeats an argument of every trainer with its default is left out
    repeated = [(row.name, row.default) for row in arguments]
    lines = list[str]()
    for heading in ["Of every run", *(each for each in tables if each != "Of every run")]:
        cells = [short[row] for row in tables[heading]]
        shown = [row for row in cells if (row.meaning, row.default) not in repeated]
        lines += [f"### {heading}", "", *table(("key", "type", "default", "meaning"), *shown)]
    return lines


def render() -> str:
    parts = [HEAD, "## Groups", "", *groups(), "## Recipes", "", *recipes(), "## Keys", "", *keys()]
    return "\n".join(parts).rstrip("\n") + "\n"


def test_the_page_is_true() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "docs/reference/configuration.md is not what the schema, conf/ and recipes/ say: run "
        "python -m tests.docs.test_configuration"
    )


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
