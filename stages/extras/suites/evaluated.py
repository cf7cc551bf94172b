"""The nodes that ask every model the prompts of suites."""

from dataclasses import replace

from stages.config.choices import Split
from stages.config.schema import Config
from stages.extras.suites import FORMS, SuiteData, Suites, SuitesOfEval
from stages.pipeline.extra_evaluation import ExtraEvaluation, PromptSet
from stages.pipeline.subgraphs import Wiring
from stages.store.node import Graph

PROMPTS = "suites"  # the name of the node with the prompts


class EvaluationBySuites(ExtraEvaluation):
    def data(self, roots: Wiring) -> Graph:
        suites = suites_of_run(roots.cfg)
        if not suites.names:
            return {}
        max_bad = roots.cfg.data.max_bad
        block = SuiteData(seed=0, max_bad=max_bad, of="eval", suites=suites)
        return {PROMPTS: roots.add(PROMPTS, "data", block)}

    def prompt_sets(self, cfg: Config, sets: Graph) -> dict[str, PromptSet]:
        if PROMPTS not in sets:
            return {}
        source = {"data": sets[PROMPTS]}
        block = replace(cfg.answer, split=Split.test).greedy_alone
        by_name = {"answer_suites": PromptSet(block, source)}
        if "templates" in (suites_of_run(cfg).names or ()):
            for form in FORMS:
                by_name[f"answer_{form}"] = PromptSet(replace(block, form=form), source)
        return by_name


def suites_of_run(cfg: Config) -> Suites:
    """Return the suites that a run asks for."""
    assert isinstance(cfg.eval, SuitesOfEval)
    return cfg.eval.suites
