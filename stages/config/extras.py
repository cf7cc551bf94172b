"""The extras: folders of `stages/extras/` that may be removed, and what their files say that each of them is.

`__init__.py` is the record, `command.py` has the `run` of a command, `tracker.py` the class of a tracker, and `cluster.py`
that of a cluster. `conf/GROUP/OPTION.yaml` is an option of a group, as a file of `conf/` is. A record may have
`COMMAND`, the record of a command, and `BLOCKS`, classes that add keys to blocks of the core's settings."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from stages.config.installation import PACKAGE

FOLDER = PACKAGE / "extras"
EXTRAS = tuple(sorted(file.parent.name for file in FOLDER.glob("*/__init__.py")))


def extras_with(file: str) -> list[str]:
    """Return the names of the extras that have a file of this name."""
    return [name for name in EXTRAS if (FOLDER / name / file).exists()]


def conf_folders() -> list[Path]:
    """Return the folders of extras with options of groups."""
    return [FOLDER / name / "conf" for name in extras_with("conf")]


@cache
def recorded(part: str) -> dict[str, Any]:
    """Return this part of the records that have one, by the name of the extra."""
    parts = dict[str, Any]()
    for name in EXTRAS:
        record = importlib.import_module(f"stages.extras.{name}")
        if hasattr(record, part):
            parts[name] = getattr(record, part)
    return parts
