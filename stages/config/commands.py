"""The commands: values of `stage` that build no node. They inspect the store, or use its nodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

# The object of a command: the run of the typed settings; a model or the evaluation of a finished run, which is the last
# one unless typed settings select another; the whole store; or nothing in a store.
Object = StrEnum("Object", "run model evaluation store nothing")


@dataclass(frozen=True)
class Command:
    """`words` stand behind its name in `--help`. `prints_json`: its `run` returns a result, which `--json` prints.
    `block` is the class of its settings, if the core of the configuration does not have them."""

    words: str
    object: Object
    prints_json: bool = True
    block: type | None = None


# `stages/commands/NAME.py` has the command's `run`
COMMANDS: Mapping[str, Command] = {
    "plan": Command("nothing runs: what would, and why", Object.run),
    "compare": Command("evaluations side by side", Object.store),
    "gate": Command("an exit code: worse than another run?", Object.evaluation),
    "gc": Command("what no report or sweep reaches", Object.store, prints_json=False),
    "doctor": Command("every file against its digest", Object.store),
    "audit": Command("what is wrong with rows of data.sources", Object.run),
    "chat": Command("talk to a model, or to all side by side", Object.model, prints_json=False),
    "export": Command(
        "a GGUF file, a dataset, or a push to the hub", Object.model, prints_json=False
    ),
    "sync": Command("sends offline runs to W&B", Object.store, prints_json=False),
    "convert": Command("a command from another tool's YAML", Object.nothing, prints_json=False),
    "context": Command("a page of commands, for programs", Object.nothing),
}


def commands_on(*objects: Object) -> tuple[str, ...]:
    """Return the commands on these objects."""
    return tuple(name for name, command in COMMANDS.items() if command.object in objects)
