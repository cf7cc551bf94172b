"""The record of a command: what the command line knows of it before it runs."""

from dataclasses import dataclass
from enum import StrEnum

from stages.config.stage_table import Phase

# The object of a command: the run of the typed settings; a model or the evaluation of a finished run, which is the last
# one unless typed settings select another; the whole store; or nothing in a store.
Object = StrEnum("Object", "run model evaluation store nothing")


class Block:
    """Settings of a command. Other classes of settings may serve, too, if types and limits refuse all that is wrong."""

    def validate(self, is_target: bool) -> None:
        """Raise UserError for settings that cannot work, `is_target`: for this command, which is the one typed."""


@dataclass(frozen=True)
class Command:
    """`words` stand behind its name in `--help`. `prints_json`: its `run` returns a result, which `--json` prints.
    `block` is the class of its settings, if the core of the configuration does not have them. A command on a run that
    uses no more than its beginning has a `phase`. It reads `settings` that a run of such nodes may leave unread. A command
    on the jobs of a sweep finds the sweep's folder in `key_of_sweep`. If its exit code is a verdict, it runs in no sweep,
    and ends with 2 for an error."""

    words: str
    object: Object
    prints_json: bool = True
    block: type | None = None
    phase: Phase | None = None
    settings: tuple[str, ...] = ()
    key_of_sweep: str = ""
    exit_code_is_verdict: bool = False
