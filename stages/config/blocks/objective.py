"""The record of a training objective, for everything that does not train it."""

from dataclasses import dataclass

from stages.config.choices import Adapter, Reads
from stages.config.installation import read_beside


@dataclass(frozen=True)
class Objective:
    """A training objective, as the command line, the plan, the memory estimate and the pages describe it. Its data
    set, model and trainer are in `stages/objectives/NAME.py`, since their imports take seconds."""

    name: str  # the name of its stage and of its block in the configuration
    title: str  # the name of the trained model in a sentence
    card: str  # the first sentence of the model card
    reads: Reads
    sequences: int  # sequences in a row of data: 2 in a pair
    labelled: float  # the share of a row's tokens that the LM head scores; 0 for a reward model, which has no LM head
    row_tokens: int  # mean tokens of a row of generated tasks: the plan's estimate before there is data
    trl: str  # the class of TRL's arguments; "": the objective has a trainer of its own, with the arguments of all
    typed: dict[str, str]  # arguments of TRL that a key of the block sets, with that key
    of_loss: tuple[str, ...]  # keys that define the loss: losses are only comparable if these keys are equal
    next: str  # the stage that follows
    adapters: tuple[Adapter, ...] = (Adapter.none, Adapter.lora, Adapter.qlora)
    in_chain: bool = False  # true: every run trains it; false: only its own target does
    scores: bool = False  # true: it trains a reward model, which scores answers and writes none

    @classmethod
    def read(cls, name: str) -> "Objective":
        """Return an objective of the YAML file beside this module."""
        keys = dict(read_beside(__file__)[name])
        keys |= {"reads": Reads(keys["reads"]), "of_loss": tuple(keys["of_loss"].split())}
        if "adapters" in keys:
            keys["adapters"] = tuple(map(Adapter, keys["adapters"].split()))
        return cls(name, **keys)

    @property
    def unit(self) -> str:
        """The noun for its rows."""
        return {Reads.examples: "rows", Reads.unpaired: "completions"}.get(self.reads, str(self.reads))
