"""`stage=convert`: another framework's training file, as a command."""

from dataclasses import dataclass

from stages.config.command_record import Command, Object
from stages.config.limits import at_least, words


@dataclass
class Convert:
    """Another framework's training file, as a command."""

    # a YAML of TRL (the alignment-handbook's, too), axolotl or LLaMA-Factory
    file: str | None = None
    # sft | dpo | reward; null: as the file tells
    stage: str | None = words("sft", "dpo", "reward", default=None)
    processes: int = at_least(1, 1)  # the GPUs of that training, of which files say nothing


COMMAND = Command(
    "a command from another tool's YAML", Object.nothing, prints_json=False, block=Convert
)
