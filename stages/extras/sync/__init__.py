"""`stage=sync`: send runs that were tracked offline to W&B."""

from stages.config.command_record import Command, Object

COMMAND = Command("sends offline runs to W&B", Object.store, prints_json=False)
