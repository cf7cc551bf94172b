"""What an extra adds to the nodes of an evaluation: `evaluated.py` in its folder has the class."""

from collections.abc import Iterator
from dataclasses import dataclass

from stages.config.blocks.evaluation import Answer
from stages.config.schema import Config
from stages.pipeline.subgraphs import Wiring
from stages.store import plugins
from stages.store.node import Graph


@dataclass
class PromptSet:
    """Prompts that the models answer by the block `answer`. `source` is the node that holds them, by role."""

    answer: Answer
    source: Graph


class ExtraEvaluation:
    """The nodes of an extra that `eval` reads, by the names of its inputs."""

    def data(self, roots: Wiring) -> Graph:
        """Add data that only the evaluation reads, and return it."""
        return {}

    def prompt_sets(self, cfg: Config, sets: Graph) -> dict[str, PromptSet]:
        """Return further sets of prompts for all models, by the name of their answers. `sets`: what the evaluation reads
        beside models and their answers."""
        return {}

    def answers(self, chain: Wiring, models: Graph) -> Graph:
        """Add nodes that ask the models themselves, by role, and return them."""
        return {}

    def instruments(self, chain: Wiring) -> Graph:
        """Return nodes whose fingerprints tell results of other instruments apart."""
        return {}


def evaluations_of_extras() -> Iterator[ExtraEvaluation]:
    """Yield what each extra adds."""
    for kind in plugins.classes_of_extras("pipeline", ExtraEvaluation):
        yield kind()
