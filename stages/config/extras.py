"""The extras: folders of `stages/extras/` that may be removed, and what their files say that each of them is.

`command.py` has the `run` of a command. `tracker.py`, `cluster.py` and `labeler.py` have the class of a tracker, a
cluster and a labeler, whose word is the folder's name; `preflight.py` has checks of nodes before they are built.
`conf/GROUP/OPTION.yaml` is an option of a group, as a file of `conf/` is.

The record is `__init__.py`. It may have `COMMAND`, the record of a command; `OPTIONS`, by group the class of the option
with the folder's name; and `BLOCKS`, by name the class that adds keys to a block of the core."""

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.config.installation import PACKAGE

FOLDER = PACKAGE / "extras"
EXTRAS = tuple(sorted(file.parent.name for file in FOLDER.glob("*/__init__.py")))


def extras_with(file: str) -> list[str]:
    """Return the names of the extras that have a file of this name."""
    return [name for name in EXTRAS if (FOLDER / name / file).exists()]


def modules_of_extras(name: str) -> list[ModuleType]:
    """Return the modules of this name of the extras that have one."""
    extras = extras_with(f"{name}.py")
    return [importlib.import_module(f"stages.extras.{extra}.{name}") for extra in extras]


def conf_folders() -> list[Path]:
    """Return the folders of extras with options of groups."""
    return [FOLDER / name / "conf" for name in extras_with("conf")]


def options_of_extras(group: str) -> dict[str, Any]:
    """Return the classes of the options that extras add to a group, by the option, which is the extra's name."""
    classes = recorded("OPTIONS").items()
    return {name: by_group[group] for name, by_group in classes if group in by_group}


@cache
def recorded(part: str) -> dict[str, Any]:
    """Return this part of the records that have one, by the name of the extra."""
    parts = dict[str, Any]()
    for name in EXTRAS:
        record = importlib.import_module(f"stages.extras.{name}")
        if hasattr(record, part):
            parts[name] = getattr(record, part)
    return parts
