"""The nodes of a run whose policy was trained elsewhere (`align=given`): it is evaluated, and faults are looked for."""

from dataclasses import replace

from stages.config.blocks.models import Model
from stages.config.choices import Align, Role
from stages.extras.examine.trained_models import (
    BEFORE,
    compared_folders,
    model_before,
    settings_of,
    trained_elsewhere,
)
from stages.pipeline import graph
from stages.pipeline.evaluation_graph import TITLES, name_folders
from stages.store.node import Graph, Node

# both models' answers to the prompts of the preferences, which an examination reads
OWN_ANSWERS = ("answer_held_out_sft", "answer_held_out_policy")


class Roots(graph.Roots):
    """The nodes that all seeds share, with the comparison of both folders."""

    def wire(self) -> graph.Roots:
        self.add("diff", "diff", compared_folders(self.cfg))
        return super().wire()

    def base_model(self) -> Model:
        return replace(self.cfg.model, key=BEFORE)


class Chain(graph.Chain):
    """The nodes of one seed: both models under templates of their own, the pairs, the evaluation and the examination."""

    def wire(self) -> Graph:
        super().wire()
        self.examine()
        return self.nodes

    def inputs_of_sft(self) -> Graph:
        """Return the model of the user's, whose chat template may serve both."""
        model = trained_elsewhere(str(settings_of(self.cfg).model), self.cfg.model.path)
        return {**super().inputs_of_sft(), "given": self.make_unnamed("base", model)}

    def train(self, align: Align) -> None:
        if align is Align.given:
            self.given()
        else:
            super().train(align)

    def given(self) -> None:
        """Add a policy that was trained elsewhere, under its own template, and the pairs that tell what it learnt. All
        of them are held out, if no control is trained on them."""
        pairs = self.cfg.pairs
        if not self.cfg.control:
            pairs = replace(pairs, validation_fraction=1.0)  # all are held out
        self.pairs(self.labels(0, self.sft), pairs)
        found = self.sft.inputs["given"]
        self.nodes["found"] = found
        # under its own template
        self.add("given", "sft", self.cfg.sft, base=found, data=self.data, given=self.base)

    def models(self) -> Graph:
        """Return the evaluated models by role, without the base: its weights are those of the model before."""
        models = super().models()
        return {role: model for role, model in models.items() if role != Role.base}

    def titles(self, models: Graph) -> dict[str, str]:
        """Return the names of both models' folders, and the titles of other models."""
        names = [str(self.cfg.model.path), str(settings_of(self.cfg).model)]
        before, after = name_folders(names)
        titles = {**TITLES, Role.sft: before, Role.policy: after}
        return {role: titles[role] for role in models}

    def examine(self) -> Node:
        """Look for faults in the policy."""
        settings = settings_of(self.cfg)
        block = replace(settings, before=model_before(self.cfg), strict=False)
        names = ["found", "sft", "given", "pairs", "eval"]
        names += [name for name in OWN_ANSWERS if name in self.nodes]
        inputs = {name: self.nodes[name] for name in names}
        folders = self.roots["diff"]
        return self.add("examine", "examine", block, base=self.base, diff=folders, **inputs)
