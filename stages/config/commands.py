"""The commands: values of `stage` that build no node. They inspect the store, or use its nodes.

`plan` is in `stages/commands/`. The record of a folder of `stages/extras/` adds a command, and no other file names it."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from stages.config.command_record import Command, Object
from stages.config.extras import recorded
from stages.config.stage_record import Phase

# `stages/commands/NAME.py` has the `run` of each
CORE: Mapping[str, Command] = {
    "plan": Command("nothing runs: what would, and why", Object.run),
}


COMMANDS: Mapping[str, Command] = {**CORE, **recorded("COMMAND")}


def commands_on(*objects: Object) -> tuple[str, ...]:
    """Return the commands on these objects."""
    return tuple(name for name, command in COMMANDS.items() if command.object in objects)


def commands_in(phase: Phase) -> tuple[str, ...]:
    """Return the commands that use a run's nodes of a phase alone."""
    return tuple(name for name, command in COMMANDS.items() if command.phase is phase)


def import_run(name: str) -> Callable[..., Any]:
    """Return the function `run` of a command. Its module may load torch."""
    is_core = name in CORE
    module = f"stages.commands.{name}" if is_core else f"stages.extras.{name}.command"
    run: Callable[..., Any] = importlib.import_module(module).run
    return run
