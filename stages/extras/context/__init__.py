"""`stage=context`: a page of commands."""

from stages.config.command_record import Command, Object

COMMAND = Command("a page of commands, for programs", Object.nothing)
