"""The nodes that ask every model the tasks of the harness."""

from dataclasses import replace

from stages.config.installation import is_left_alone
from stages.config.schema import Config
from stages.extras.benchmarks import INSTRUMENT, PREFIX, Benchmark, harness_version
from stages.pipeline.extra_evaluation import ExtraEvaluation
from stages.pipeline.subgraphs import Wiring
from stages.store.node import Graph


class EvaluationByBenchmarks(ExtraEvaluation):
    def answers(self, chain: Wiring, models: Graph) -> Graph:
        answers = Graph()
        block = block_of_run(chain.cfg)
        if block.tasks:
            for role, model in models.items():
                key = f"{PREFIX}{role}"
                answers[key] = chain.add(key, "benchmark", block, model=model)
        return answers

    def instruments(self, chain: Wiring) -> Graph:
        block = block_of_run(chain.cfg)
        return {INSTRUMENT: chain.make_unnamed("benchmark", block)} if block.tasks else {}


def block_of_run(cfg: Config) -> Benchmark:
    """Return the block of the tasks, with the version of the harness if there are any, unless a plan may not ask its
    Python."""
    block: Benchmark = vars(cfg)["benchmark"]
    if not block.tasks or is_left_alone(block.runtime.python):
        return block
    return replace(block, engine=harness_version(block.runtime.python))
