"""`stage=gc`: list or remove nodes that nothing needs."""

from dataclasses import dataclass

from stages.config.command_record import Command, Object


@dataclass
class GC:
    # stage=gc lists what no report, sweep or latest link reaches; true removes it
    remove: bool = False


COMMAND = Command("what no report or sweep reaches", Object.store, prints_json=False, block=GC)
