"""`stage=gate`: an exit code for a policy that is worse than another. Its rule and the block `gate` are the core's."""

from stages.config.command_record import Command, Object

COMMAND = Command(
    "an exit code: worse than another run?", Object.evaluation, exit_code_is_verdict=True
)
