"""The commands: values of `stage` that build no node. They inspect the store, or use its nodes.

`plan` is in `stages/commands/`. Each folder of `stages/extras/` adds a command, and no other file names it."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stages.config.command_record import Command, Object
from stages.config.installation import PACKAGE
from stages.config.stage_table import Phase

# `stages/commands/NAME.py` has the `run` of each
CORE: Mapping[str, Command] = {
    "plan": Command("nothing runs: what would, and why", Object.run),
}


def read_extras(folder: Path) -> dict[str, Command]:
    """Return the command of each folder of extras, by the folder's name."""
    records = dict[str, Command]()
    for file in sorted(folder.glob("*/__init__.py")):
        name = file.parent.name
        records[name] = importlib.import_module(f"stages.extras.{name}").COMMAND
    return records


EXTRAS: Mapping[str, Command] = read_extras(PACKAGE / "extras")
COMMANDS: Mapping[str, Command] = {**CORE, **EXTRAS}


def commands_on(*objects: Object) -> tuple[str, ...]:
    """Return the commands on these objects."""
    return tuple(name for name, command in COMMANDS.items() if command.object in objects)


def commands_in(phase: Phase) -> tuple[str, ...]:
    """Return the commands that use a run's nodes of a phase alone."""
    return tuple(name for name, command in COMMANDS.items() if command.phase is phase)


def import_run(name: str) -> Callable[..., Any]:
    """Return the function `run` of a command. Its module may load torch."""
    module = f"stages.extras.{name}.command" if name in EXTRAS else f"stages.commands.{name}"
    run: Callable[..., Any] = importlib.import_module(module).run
    return run
