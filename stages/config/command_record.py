"""The record of a command: what the command line knows of it before it runs."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from stages.config.stage_record import Phase

# The object of a command: the run of the typed settings; a model or the evaluation of a finished run, which is the last
# one unless typed settings select another; the whole store; or nothing in a store.
Object = StrEnum("Object", "run model evaluation store nothing")


class Block:
    """Settings of an extra. Other classes of settings may serve, too, if types and limits refuse all that is wrong."""

    def validate(self, is_target: bool) -> None:
        """Raise UserError for settings that cannot work, `is_target`: for the block's command, which is the one typed."""

    @property
    def folders(self) -> dict[str, str | None]:
        """The folders that the settings name, by their keys: the content is part of fingerprints."""
        return {}

    @property
    def turned_off(self) -> dict[str, str]:
        """The keys that other keys of the block turn off, each with the reason and the way out."""
        return {}


class Standalone(Block):
    """Settings of an extra whose nodes can be a whole run, in which no model is trained or run. `alone.py` of the extra
    wires these nodes, and `page.py` writes their report. `way_to_models` tells what a run with models needs."""

    way_to_models: ClassVar[str]
    left_out: str | None  # why the run has no models, if one of them failed

    def is_alone(self, cfg: Any) -> bool:
        """Return True if a run with this configuration has the extra's nodes alone."""
        raise NotImplementedError

    def alone(self, cfg: Any, reason: str) -> Any:
        """Return the configuration with the extra's nodes alone, in place of one that fails for a reason. None if the
        extra has no nodes for it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Command:
    """A value of `stage` that builds no node."""

    words: str  # behind its name in `--help`
    object: Object
    prints_json: bool = True  # its `run` returns a result, which `--json` prints
    block: type | None = None  # the class of its settings, if the core's schema does not have them
    phase: Phase | None = None  # of a run, if the command uses no nodes behind it
    settings: tuple[str, ...] = ()  # keys that it reads where no node does
    key_of_sweep: str = ""  # takes the folder of a sweep, whose jobs the command shows
    # true: it runs in no sweep, and ends with 2 for an error
    exit_code_is_verdict: bool = False
    example: str = ""  # in `--help`: what its name alone does
    # what a report suggests it for, to those whose model is worth using; "": no report suggests it
    next_step: str = ""
