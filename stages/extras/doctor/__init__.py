"""`stage=doctor`: compare all files of a store with their digests."""

from stages.config.command_record import Command, Object

COMMAND = Command("every file against its digest", Object.store)
