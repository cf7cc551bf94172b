"""`stage=audit`: report problems in rows of files."""

from stages.config.command_record import Command, Object
from stages.config.stage_record import Phase

COMMAND = Command(
    "what is wrong with rows of data.sources",
    Object.run,
    phase=Phase.start,
    settings=("data.audit",),
)
