"""`eval/suites`: suites of twins of prompts, each of which asks for one habit of an aligned model.

`data` writes the prompts (`prompts.py`), every model answers them, and `eval` and `report` have a section on them."""

from dataclasses import dataclass, field
from typing import ClassVar

from stages.config.blocks.data import Data
from stages.config.blocks.evaluation import NoSuites
from stages.config.command_record import Block
from stages.config.limits import between, computed, random_seed, words

SUITES = ("refusal", "unknown", "system", "templates", "rephrased", "turns")
# in which the suite `templates` is asked beside the model's own form
FORMS = ("zephyr", "llama3", "text")


@dataclass
class Suites(NoSuites):
    """Suites of twins of prompts for the evaluation: refusals, unknown facts, system prompts and others."""

    # refusal, unknown, system, templates, rephrased, turns
    names: list[str] | None = words(*SUITES, default=None)
    pairs: int | None = between(10, 10_000, None)  # of twins in each suite
    seed: int | None = random_seed(None)  # draws the twins
    # of the prompts and checks in prompts.yaml: a change raises it
    edition: int = computed(2)


@dataclass
class SuitesOfEval(Block):
    """The key that the extra adds to the block `eval`. It is no `Eval`: the nodes with prompts do not depend on that."""

    suites: Suites = field(default_factory=Suites)

    @property
    def turned_off(self) -> dict[str, str]:
        if self.suites.names:
            return {}
        reason = "no suite is named. Add eval.suites.names=[refusal]"
        return dict.fromkeys(("suites.pairs", "suites.seed"), reason)


@dataclass
class SuiteData(Data):
    """The prompts of suites."""

    extra: ClassVar[str] = "suites"

    suites: Suites = field(default_factory=Suites)


BLOCKS = {"eval": SuitesOfEval}
