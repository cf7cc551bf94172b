"""The nodes that evaluate the models of a run.

Every model answers every set of prompts (`answer`). With `eval.judged`, each opponent's answers are put beside the
policy's (`versus`), and a labeler judges these pairs of answers (`label`). Extras may ask the
models more. The node `eval` reads all of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from stages.config.blocks.draws import Drawing
from stages.config.blocks.evaluation import (
    CONSTANT,
    REFERENCE,
    REFERENCES,
    ROUND,
    Compared,
    Versus,
)
from stages.config.blocks.labels import Label
from stages.config.blocks.models import Model
from stages.config.blocks.objective import Training
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Role, Split
from stages.config.schema import Config
from stages.pipeline.extra_evaluation import PromptSet, evaluations_of_extras
from stages.pipeline.subgraphs import Wiring
from stages.store.node import Graph, Node

TITLES = {
    Role.base: "Base",
    Role.control_pairs: "Control pairs",
    REFERENCE: REFERENCES,
}
START = "Start"  # the title of a model that is given, and trained further
MAX_PROMPTS = 1_000_000  # that are compared, without eval.judged.prompts
# at most: enough prompts to see that a labeler often prefers a constant answer
CONSTANT_PROMPTS = 50
# prefix of the names of judgements that people still owe: the report does not wait for them
WAITING = "waiting_"


@dataclass
class Evaluation:
    """Adds the nodes of an evaluation to those of a chain. `models` are the evaluated models by role, and `titles` their
    titles. `sets` are nodes with prompts (`data`, `pairs` or `unpaired` for held-out labels, `outside`,
    `judged_prompts`), texts (`retained`), data of extras, and all other labels that were trained on. `round_models` are
    SFT and the policies
    of several rounds."""

    chain: Wiring
    models: Graph
    titles: dict[str, str]
    sets: Graph
    round_models: Sequence[Node]

    @property
    def cfg(self) -> Config:
        return self.chain.cfg

    def results(self) -> Node:
        """Return the comparison of all models, which reads their answers and the judgements of these."""
        answers = self.answers()
        of_extras = self.answers_for_extras()
        by_round = self.answers_by_round()
        comparisons = self.comparisons(answers)
        block = replace(
            self.cfg.eval.read_by_eval,
            models=self.titles,
            max_new_tokens=self.cfg.answer.max_new_tokens,
            compared=title_opponents(self.opponents, self.titles),
            instruments={name: node.fingerprint for name, node in self.instruments().items()},
        )
        inputs = {**self.sets, **self.models, **answers, **of_extras, **by_round, **comparisons}
        return self.chain.add("eval", "eval", block, **inputs)

    @cached_property
    def prompt_sets(self) -> dict[str, PromptSet]:
        """The sets of prompts by the name of their answers. Prompts of held-out pairs are a set if the user's file
        brought them, or if there are no other prompts."""
        cfg, sets = self.cfg, self.sets
        on_test = replace(cfg.answer, split=Split.test)
        by_name = dict[str, PromptSet]()
        for extra in evaluations_of_extras():
            by_name |= extra.prompt_sets(cfg, sets)
        if "outside" in sets:
            by_name["answer_outside"] = PromptSet(on_test, {"data": sets["outside"]})
        if cfg.has_prompts_to_answer:
            by_name["answer"] = PromptSet(cfg.answer, {"data": sets["data"]})
        if cfg.candidates_bring_prompts or not cfg.has_prompts_to_answer:
            for name in ("pairs", "unpaired"):
                if name in sets and vars(cfg)[name].validation_fraction:
                    by_name["answer_held_out"] = PromptSet(cfg.answer, {name: sets[name]})
                    break
        if "judged_prompts" in sets:
            block = replace(on_test, open=self.most_compared_prompts)
            by_name["answer_judged"] = PromptSet(block, {"data": sets["judged_prompts"]})
        return by_name

    def answers(self) -> Graph:
        """Return every model's answers to every set of prompts."""
        answers = Graph()
        # the models are the outer loop, so that each is loaded once
        for role, model in self.models.items():
            for name, prompts in self.prompt_sets.items():
                if role == Role.base and prompts.answer.form:
                    continue  # a base is tied to no chat template
                key = f"{name}_{role}"
                answers[key] = self.chain.add(
                    key, "answer", prompts.answer, model=model, **prompts.source
                )
        return answers

    def answers_for_extras(self) -> Graph:
        """Return the nodes in which extras ask the models themselves."""
        answers = Graph()
        for extra in evaluations_of_extras():
            answers |= extra.answers(self.chain, self.models)
        return answers

    def answers_by_round(self) -> Graph:
        """Return the answers of SFT and each round's policy to validation prompts, if several rounds trained one."""
        answers = Graph()
        if not self.cfg.generates_prompts(Split.validation):
            return answers
        block = replace(self.cfg.answer.greedy_alone, split=Split.validation, open=0)
        for number, model in enumerate(self.round_models):
            key = f"{ROUND}{number}"
            answers[key] = self.chain.add(key, "answer", block, model=model, data=self.sets["data"])
        return answers

    @cached_property
    def opponents(self) -> dict[str, str]:
        """The models of `eval.judged.against`: the name of each comparison, and the opponent's role or path."""
        opponents = dict[str, str]()
        if not isinstance(self.cfg.eval.judged, Compared):
            return opponents
        folders = self.cfg.eval.judged.outside_models
        for number, role_or_path in enumerate(self.cfg.eval.judged.against, 1):
            # the policy is SFT itself
            if role_or_path == Role.sft and role_or_path not in self.models:
                role_or_path = str(Role.base) if Role.base in self.models else str(Role.other)
            key = role_or_path
            if role_or_path in folders:
                is_other = Role.other in self.models and role_or_path == folders[0]
                key = str(Role.other) if is_other else f"model_{number}"
            opponents[key] = role_or_path
        return opponents

    @property
    def most_compared_prompts(self) -> int:
        """The most prompts whose answers are compared."""
        judged = self.cfg.eval.judged
        return (isinstance(judged, Compared) and judged.prompts) or MAX_PROMPTS

    def comparisons(self, answers: Graph) -> Graph:
        """Return for each opponent both models' answers side by side, and their labels without those that people
        still owe."""
        judged = self.cfg.eval.judged
        if not isinstance(judged, Compared) or not self.opponents:
            return {}
        # the prompts of `eval.judged.source`, else of held-out pairs, else of the data
        set_name = [*self.prompt_sets][-1]
        of_opponents = self.answers_of_opponents(set_name, answers)
        policy = {
            **self.prompt_sets[set_name].source,
            "model": self.models[Role.policy],
            "policy": answers[f"{set_name}_{Role.policy}"],
        }
        blocks = {key: Versus(key, self.most_compared_prompts) for key in self.opponents}
        # a labeler that prefers one constant answer to real ones cannot be trusted: the report says so
        if not judged.label.asked_people:
            first = [*of_opponents, *self.opponents][0]
            most = min(self.most_compared_prompts, CONSTANT_PROMPTS)
            blocks[CONSTANT] = Versus(first, most, constant=True)
        comparisons = Graph()
        for key, block in blocks.items():
            inputs = dict(policy)
            if block.against in of_opponents:
                inputs["other"] = of_opponents[block.against]
            pool = self.chain.add(f"versus_{key}", "versus", block, **inputs)
            comparisons[f"versus_{key}"] = pool
            labels = self.chain.judge(judged.label, pool, suffix=f"_of_{key}")
            if self.is_owed_by_people(judged.label, labels):
                self.chain.nodes[f"{WAITING}judged_{key}"] = labels
            else:
                self.chain.nodes[f"judged_{key}"] = labels
                comparisons[f"judged_{key}"] = labels
        return comparisons

    def answers_of_opponents(self, set_name: str, answers: Graph) -> Graph:
        """Return the opponents' answers to a set of prompts. Models that this run does not evaluate otherwise
        answer it here."""
        prompts = self.prompt_sets[set_name]
        of_opponents = Graph()
        for key, path in self.opponents.items():
            if key in self.models:
                of_opponents[key] = answers[f"{set_name}_{key}"]
            elif key != REFERENCE:
                model = self.chain.add(key, "base", other_model_block(self.cfg, path))
                of_opponents[key] = self.chain.add(
                    f"{set_name}_{key}",
                    "answer",
                    prompts.answer.greedy_alone,
                    model=model,
                    **prompts.source,
                )
        return of_opponents

    def is_owed_by_people(self, label: Label, labels: Node) -> bool:
        """Return True if people still have to give these labels."""
        people = label.asked_people
        return people is not None and not people.answered and not self.chain.is_built(labels)

    def instruments(self) -> Graph:
        """Return the nodes of the labeler and of extras. Their fingerprints tell results of others apart."""
        nodes = Graph()
        if isinstance(self.cfg.eval.judged, Compared):
            label = self.cfg.eval.judged.label
            nodes["judge"] = self.chain.make_unnamed("label", label, **self.chain.scorer(label))
        for extra in evaluations_of_extras():
            nodes |= extra.instruments(self.chain)
        return nodes


def other_model_block(cfg: Config, path: str) -> Model:
    """Return the block of a model in `eval.judged.against` that this run does not train or start from."""
    return Model(path, None, key=f"eval.judged.against[{cfg.eval.judged.against.index(path)}]")


def title_models(cfg: Config, models: Graph) -> dict[str, str]:
    """Return the models' titles for the report by role: the role or the objective that trained the model. If the run
    trains nothing, the two compared models are named by their folders."""
    if Role.other in models:
        other, policy = name_folders(
            [cfg.eval.judged.outside_models[0], cfg.model.path or "random weights"]
        )
        return {Role.other: other, Role.policy: policy}
    titles = {role: title_model(cfg, role, model) for role, model in models.items()}
    if not cfg.sft.train and Role.sft in models:
        titles[Role.sft] = START  # which nothing of ours trained
    return titles


def title_model(cfg: Config, role: str, model: Node) -> str:
    """Return the title of a model of this run for the report."""
    controlled = cfg.controls.get(role)
    if not controlled:
        return TITLES.get(role) or trained_title(model)
    title = "Control"
    if isinstance(model.config, Drawing):
        title = model.config.title
    if controlled in cfg.arms and role != Role.control:
        title = f"{title} beside {vars(cfg)[controlled].title}"
    return title


def trained_title(model: Node) -> str:
    """Return the name of what trained a model."""
    if isinstance(model.config, Training):
        return model.config.title
    return OBJECTIVES[model.stage].title


def title_opponents(opponents: Mapping[str, str], titles: Mapping[str, str]) -> dict[str, str]:
    """Return the titles of opponents by key: those of their roles, or the names of their folders."""
    titles = {**TITLES, **titles}
    folders = {key: path for key, path in opponents.items() if key not in titles}
    names = dict(zip(folders, name_folders([*folders.values()]), strict=True))
    return {key: names.get(key) or titles[key] for key in opponents}


def name_folders(folders: Sequence[str]) -> list[str]:
    """Return the names of model folders, or their paths where two have the same name. NODE/model is called NODE."""
    paths = [*map(Path, folders)]
    counts = Counter(map(folder_name, paths))
    return [str(path) if counts[folder_name(path)] > 1 else folder_name(path) for path in paths]


def folder_name(path: Path) -> str:
    return path.parent.name if path.name == "model" else path.name


def evaluated_models(nodes: Mapping[str, Node]) -> Graph:
    """Return the nodes of the evaluated models by role, in the order of the evaluation."""
    return {role: nodes["eval"].inputs[role] for role in nodes["eval"].config.models}
