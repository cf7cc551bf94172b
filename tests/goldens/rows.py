"""The rows of every recipe's data, and what `stage=data` and `stage=pairs` read of the data files that we have."""

import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.cli.recipe_layers import built_in_recipes
from stages.config.installation import ROOT
from stages.store.store import Store
from tests.goldens import runs, users
from tests.goldens.records import Commands
from tests.helpers import DATA

SHARED = "shared/"  # stands for the folder of real data beside the checkout, which may be missing
READ = "recipe=tiny tracker=none data=file 'data.sources=[{{path: {file}}}]' stage=data"
PAIRED = "recipe=tiny tracker=none label=dataset label.path={file} stage=pairs"
# Programs and texts beside the data
NO_DATA = {".md", ".py", ".yaml", ".jinja"}
STAGES = ("source", "data", "label", "pairs")


def commands() -> list[str]:
    """Return a line for the data of every recipe, and two for every data file."""
    names = [*sorted(path.stem for path in built_in_recipes()), *users.EXAMPLES]
    recipes = [f"recipe={name} tracker=none stage=data" for name in names]
    return recipes + [form.format(file=file) for file in data_files() for form in (READ, PAIRED)]


def data_files() -> list[str]:
    examples = {*ROOT.glob("docs/examples/*")} - {ROOT / path for path in users.EXAMPLES}
    ours = [*examples, *ROOT.glob("tests/*/*.jsonl")]
    shared = [path for path in DATA.rglob("*") if path.is_file() and path.suffix not in NO_DATA]
    names = [str(path.relative_to(ROOT)) for path in sorted(ours)]
    return names + [f"{SHARED}{path.relative_to(DATA)}" for path in sorted(shared)]


def is_possible(line: str) -> bool:
    return SHARED not in line or DATA.exists()


def measure(lines: Iterable[str]) -> dict[str, Any]:
    """Return by line what each node that holds data made, by name."""
    values: dict[str, Any] = {}
    for line in lines:
        typed = shlex.split(line.replace(SHARED, f"{DATA}/"))
        with tempfile.TemporaryDirectory() as folder:
            values[line] = read_rows(Path(folder), typed)
    return values


def read_rows(root: Path, typed: list[str]) -> dict[str, Any]:
    nodes = runs.run(root, typed)
    if "refused" in nodes:
        return nodes
    folders = {
        name: Store(root).folder(node) for name, node in nodes.items() if node.stage in STAGES
    }
    return {name: runs.describe(folder) for name, folder in folders.items() if folder.exists()}


PART = Commands("rows", commands, measure, is_possible)
