"""The record of a stage, from which `stage_table.py` makes the table of all stages. Its import loads no torch."""

from dataclasses import dataclass
from enum import StrEnum

# The part of a run to which a stage belongs. `start`: what a run has before a model answers prompts of preferences.
Phase = StrEnum("Phase", "start candidates preferences policy evaluation")
LINEAGE = "lineage"  # the section of the report that names all nodes


@dataclass(frozen=True)
class Stage:
    """`version` is part of the fingerprints of the stage's nodes: raise it when the stage computes something else.
    `words` stand behind its name in `--help`. The command line suggests the stage `next` afterwards, or `instead` if
    this run does not train this one. `absent` says why a graph has no such node, or which setting adds one.
    `settings` are the keys and blocks that only this stage reads, of a stage that a run may lack; inner blocks stand
    before outer ones. `section` of the report shows its warnings. `draws`: it trains the policy on draws of its own.
    `title` is the name of the policy that it trains, in a sentence. `recipe` is the stage's own, for those who type none.
    `shown_by` is the stage that is built for this one, since it shows what was made. `extra` is the folder of `stages/extras/` with its code,
    or empty for a stage of the core."""

    name: str
    version: int
    words: str
    phase: Phase | None = None
    next: str | None = None
    instead: str | None = None
    absent: str = ""
    settings: tuple[str, ...] = ()
    section: str = LINEAGE
    draws: bool = False
    title: str = ""
    recipe: str = ""
    shown_by: str = ""
    extra: str = ""

    @property
    def file(self) -> str:
        """The file with the stage's `run`, inside the package."""
        return f"extras/{self.extra}/{self.name}.py" if self.extra else f"{self.name}.py"

    @property
    def module(self) -> str:
        """The module with the stage's `run`."""
        return f"stages.{self.file.removesuffix('.py').replace('/', '.')}"
