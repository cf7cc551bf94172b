"""The part of the graph that asks models and compares them: answers to every set of prompts, comparisons of the
policy's answers with those of others and the labels of these, and the evaluation that reads it all."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from stages.config.blocks.evaluation import REFERENCE, Answer, Judged, Versus
from stages.config.blocks.models import Model
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Role, Split
from stages.config.schema import Config
from stages.pipeline.subgraphs import labels
from stages.store.node import Node

TITLES = {Role.base: "Base", Role.control: "Control", REFERENCE: "the reference answers"}
CONSTANT = "constant"  # a comparison in which one answer for every prompt takes the policy's place
CONSTANT_PROMPTS = 50  # at most: enough to see that it wins often
WAITING = "waiting_"  # begins the names of nodes that people have not completed: no report waits for them

MakeNode = Callable[..., Node]


def evaluation(
    cfg: Config,
    node: MakeNode,
    models: Mapping[str, Node],
    sets: Mapping[str, Node],
    reward: Mapping[str, Node],
    built: Callable[[Node], bool],
) -> dict[str, Node]:
    """Return all that evaluates the models, by name. `sets`: the prompts that are asked, `data`, `pairs` (those that
    are held out), `outside` and `judged_prompts`; and `retained`, texts that are read. `reward`: the run's own reward
    model, where there is one. `built`: whether a node is in the store already."""
    asks = asked(cfg, sets)
    answers = {
        f"{name}_{role}": node("answer", block, model=model, **prompts)
        for name, (block, prompts) in asks.items()
        for role, model in models.items()  # a sweep answers for base and SFT once
    }
    judged, opponents = dict[str, Node](), opponents_of(cfg, models) if cfg.eval.judged.wanted else {}
    if opponents:
        judged = comparisons(cfg, node, models, opponents, asks, answers, reward, built)
    read = {name: its for name, its in judged.items() if name.startswith(("versus_", "judged_"))}
    titles = titles_of(cfg, models)
    block = replace(
        cfg.eval,
        models=titles,
        compared={key: titles.get(key) or TITLES.get(key) or Path(name).name for key, name in opponents.items()},
        retention=[],  # these are of nodes of their own, and so is who judges
        judged=Judged(labeler=cfg.eval.judged.labeler, max_longer=cfg.eval.judged.max_longer),
    )
    return answers | judged | {"eval": node("eval", block, **sets, **models, **answers, **read)}


def asked(cfg: Config, sets: Mapping[str, Node]) -> dict[str, tuple[Answer, dict[str, Node]]]:
    """Return what every model is asked: by the name of its answers, how, and the node that has the prompts. Those of
    held-out pairs are asked where they are somebody's own, or there are no others."""
    found = dict[str, tuple[Answer, dict[str, Node]]]()
    if "outside" in sets:
        found["answer_outside"] = replace(cfg.answer, split=Split.test), {"data": sets["outside"]}
    if cfg.tested:
        found["answer"] = cfg.answer, {"data": sets["data"]}
    if "pairs" in sets and (cfg.own_prompts or not cfg.tested):
        found["answer_held_out"] = cfg.answer, {"pairs": sets["pairs"]}
    if "judged_prompts" in sets:
        block = replace(cfg.answer, split=Split.test, open=cfg.eval.judged.prompts or 0)
        found["answer_judged"] = block, {"data": sets["judged_prompts"]}
    return found


def opponents_of(cfg: Config, models: Mapping[str, Node]) -> dict[str, str]:
    """Return whose answers the policy's are held against: the name of the comparison, and the role or the path."""
    found = dict[str, str]()
    for number, name in enumerate(cfg.eval.judged.against, 1):
        if name == Role.sft and name not in models:  # the policy is SFT itself
            name = str(Role.base) if Role.base in models else str(Role.other)
        if name in cfg.eval.judged.folders:
            other = Role.other in models and name == cfg.eval.judged.folders[0]
            found[str(Role.other) if other else f"model_{number}"] = name
        else:
            found[name] = name
    return found


def comparisons(
    cfg: Config,
    node: MakeNode,
    models: Mapping[str, Node],
    opponents: Mapping[str, str],
    asks: Mapping[str, tuple[Answer, dict[str, Node]]],
    answers: Mapping[str, Node],
    reward: Mapping[str, Node],
    built: Callable[[Node], bool],
) -> dict[str, Node]:
    """Return the nodes of `eval.judged`, by name: for each opponent the two models' answers side by side, and their
    labels. The prompts are those of `eval.judged.source`, or of held-out pairs, or the data's."""
    judged, chosen = cfg.eval.judged, [*asks][-1]
    block, prompts = asks[chosen]
    most, label = judged.prompts or 0, judged.label
    by_people, by = "human" in label.labelers, reward if label.by_reward else {}
    given = {**prompts, "model": models[Role.policy], "policy": answers[f"{chosen}_{Role.policy}"]}
    made, others = dict[str, Node](), dict[str, Node]()
    for key, name in opponents.items():
        if key in models:
            others[key] = answers[f"{chosen}_{key}"]
        elif key != REFERENCE:
            made[key] = node("base", other_model(cfg, name))
            made[f"{chosen}_{key}"] = others[key] = node("answer", block, model=made[key], **prompts)
    versus = {key: Versus(key, most) for key in opponents}
    if not by_people:
        before = next(key for key in (*others, *opponents))
        versus[CONSTANT] = Versus(before, min(most, CONSTANT_PROMPTS), constant=True)
    for key, side_by_side in versus.items():
        against = {"other": others[side_by_side.against]} if side_by_side.against in others else {}
        made[f"versus_{key}"] = pool = node("versus", side_by_side, **given, **against)
        its, members = labels(label, node, pool, **by)
        made |= {f"{name}_of_{key}": member for name, member in members.items() if member is not its}
        waits = by_people and not judged.human.answered and not built(its)
        made[f"{WAITING if waits else ''}judged_{key}"] = its
    return made


def other_model(cfg: Config, path: str) -> Model:
    """The block of a model that is none of this run's."""
    return Model(path, None, of=f"eval.judged.against[{cfg.eval.judged.against.index(path)}]")


def titles_of(cfg: Config, models: Mapping[str, Node]) -> dict[str, str]:
    """What the models are called in the evaluation: by their roles, or the objective that trained them; of models that
    came as they are, by their folders."""
    found = {
        role: TITLES.get(role) or OBJECTIVES[model.stage].title for role, model in models.items() if role != Role.other
    }
    if Role.other in models:
        paths = (cfg.eval.judged.folders[0], cfg.model.path or "random weights")
        names = {Path(path).name for path in paths}
        told = [Path(path).name if len(names) > 1 else path for path in paths]
        found = dict(zip((str(Role.other), str(Role.policy)), told, strict=True))
    return found


def evaluated(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """The models that the evaluation is about, by role, in its order."""
    return {role: nodes["eval"].inputs[role] for role in nodes["eval"].config.models}
