"""`stage=compare`: compare the evaluations of a store or a sweep."""

from dataclasses import dataclass

from stages.config.command_record import Command, Object


@dataclass
class Compare:
    # the folder of a sweep, outputs/multirun/…: only its jobs; null: every evaluation in the store
    sweep: str | None = None


COMMAND = Command(
    "evaluations side by side", Object.store, block=Compare, key_of_sweep="compare.sweep"
)
