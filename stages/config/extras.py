"""The extras: folders of `stages/extras/` that may be removed, and what their files say that each of them is.

`__init__.py` is the record, `command.py` has the `run` of a command, and `tracker.py` the class of a tracker.
`conf/GROUP/OPTION.yaml` is an option of a group, as a file of `conf/` is."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from stages.config.installation import PACKAGE

FOLDER = PACKAGE / "extras"


def read_records(folder: Path) -> dict[str, ModuleType]:
    """Return the record of each folder of extras, by the folder's name."""
    records = dict[str, ModuleType]()
    for file in sorted(folder.glob("*/__init__.py")):
        name = file.parent.name
        records[name] = importlib.import_module(f"stages.extras.{name}")
    return records


EXTRAS: Mapping[str, ModuleType] = read_records(FOLDER)


def extras_with(file: str) -> list[str]:
    """Return the names of the extras that have a file of this name."""
    return [name for name in EXTRAS if (FOLDER / name / file).is_file()]


def conf_folders() -> list[Path]:
    """Return the folders of extras with options of groups."""
    folders = [FOLDER / name / "conf" for name in EXTRAS]
    return [folder for folder in folders if folder.is_dir()]
