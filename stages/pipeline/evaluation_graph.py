"""The part of the graph that asks models and compares them: answers to every set of prompts, comparisons of the
policy's answers with those of others and the labels of these, and the evaluation that reads it all."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from stages.config.blocks.evaluation import CONSTANT, REFERENCE, REFERENCES, Answer, Judged, Versus
from stages.config.blocks.models import Model
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Role, Split
from stages.config.schema import Config
from stages.pipeline.subgraphs import labels
from stages.store.node import Node

TITLES = {Role.base: "Base", Role.control: "Control", REFERENCE: REFERENCES}
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
    asks = questions(cfg, sets)
    answers = {
        f"{name}_{role}": node("answer", block, model=model, **prompts)
        for role, model in models.items()  # a sweep answers for base and SFT once; a model is loaded once
        for name, (block, prompts) in asks.items()
    }
    judged, opponents = dict[str, Node](), opponents_of(cfg, models) if cfg.eval.judged.wanted else {}
    if opponents:
        last = [*asks][-1]  # prompts of `eval.judged.source`, or of held-out pairs, or the data's
        judged = comparisons(cfg, node, models, opponents, answers, (last, *asks[last]), reward, built)
    read = {name: made for name, made in judged.items() if name.startswith(("versus_", "judged_"))}
    titles = titles_of(cfg, models)
    block = replace(
        cfg.eval,
        models=titles,
        compared={key: titles.get(key) or TITLES.get(key) or Path(name).name for key, name in opponents.items()},
        retention=[],  # these are of nodes of their own, and so is who judges
        judged=Judged(labeler=cfg.eval.judged.labeler, max_longer=cfg.eval.judged.max_longer),
    )
    return answers | judged | {"eval": node("eval", block, **sets, **models, **answers, **read)}


def questions(cfg: Config, sets: Mapping[str, Node]) -> dict[str, tuple[Answer, dict[str, Node]]]:
    """Return what every model is asked: by the name of its answers, how, and the node that has the prompts. Those of
    held-out pairs are asked where they are somebody's own, or there are no others."""
    by_name = dict[str, tuple[Answer, dict[str, Node]]]()
    if "outside" in sets:
        by_name["answer_outside"] = replace(cfg.answer, split=Split.test), {"data": sets["outside"]}
    if cfg.tested:
        by_name["answer"] = cfg.answer, {"data": sets["data"]}
    if "pairs" in sets and (cfg.own_prompts or not cfg.tested):
        by_name["answer_held_out"] = cfg.answer, {"pairs": sets["pairs"]}
    if "judged_prompts" in sets:
        block = replace(cfg.answer, split=Split.test, open=cfg.eval.judged.prompts or 0)
        by_name["answer_judged"] = block, {"data": sets["judged_prompts"]}
    return by_name


def opponents_of(cfg: Config, models: Mapping[str, Node]) -> dict[str, str]:
    """Return whose answers the policy's are held against: the name of the comparison, and the role or the path."""
    opponents, folders = dict[str, str](), cfg.eval.judged.folders
    for number, name in enumerate(cfg.eval.judged.against, 1):
        if name == Role.sft and name not in models:  # the policy is SFT itself
            name = str(Role.base) if Role.base in models else str(Role.other)
        key = name
        if name in folders:
            key = str(Role.other) if Role.other in models and name == folders[0] else f"model_{number}"
        opponents[key] = name
    return opponents


def comparisons(
    cfg: Config,
    node: MakeNode,
    models: Mapping[str, Node],
    opponents: Mapping[str, str],
    answers: Mapping[str, Node],
    asked: tuple[str, Answer, dict[str, Node]],
    reward: Mapping[str, Node],
    built: Callable[[Node], bool],
) -> dict[str, Node]:
    """Return the nodes of `eval.judged`, by name: for each opponent the two models' answers side by side, and their
    labels. `asked`: the name of the answers that are compared, how they are asked for, and who has the prompts."""
    name, block, prompts = asked
    label, most = cfg.eval.judged.label, cfg.eval.judged.prompts or 0
    by_people, by_reward = "human" in label.labelers, reward if label.by_reward else {}
    nodes, theirs = dict[str, Node](), dict[str, Node]()
    for key, path in opponents.items():
        if key in models:
            theirs[key] = answers[f"{name}_{key}"]
        elif key != REFERENCE:
            nodes[key] = node("base", other_model(cfg, path))
            nodes[f"{name}_{key}"] = theirs[key] = node("answer", block, model=nodes[key], **prompts)
    versus = {key: Versus(key, most) for key in opponents}
    if not by_people:
        versus[CONSTANT] = Versus([*theirs, *opponents][0], min(most, CONSTANT_PROMPTS), constant=True)
    policy = {**prompts, "model": models[Role.policy], "policy": answers[f"{name}_{Role.policy}"]}
    for key, sides in versus.items():
        other = {"other": theirs[sides.against]} if sides.against in theirs else {}
        nodes[f"versus_{key}"] = pool = node("versus", sides, **policy, **other)
        judgements, members = labels(label, node, pool, **by_reward)
        nodes |= {f"{member}_of_{key}": made for member, made in members.items() if made is not judgements}
        waits = by_people and not label.human.answered and not built(judgements)
        nodes[f"{WAITING if waits else ''}judged_{key}"] = judgements
    return nodes


def other_model(cfg: Config, path: str) -> Model:
    """Return the block of a model that is none of this run's."""
    return Model(path, None, of=f"eval.judged.against[{cfg.eval.judged.against.index(path)}]")


def titles_of(cfg: Config, models: Mapping[str, Node]) -> dict[str, str]:
    """Name the models in the evaluation: by their roles, or the objective that trained them; two that came as they are
    by their folders."""
    if Role.other not in models:
        return {role: TITLES.get(role) or OBJECTIVES[model.stage].title for role, model in models.items()}
    paths = [Path(path) for path in (cfg.eval.judged.folders[0], cfg.model.path or "random weights")]
    names = [path.parent.name if path.name == "model" else path.name for path in paths]  # as in a node of a store
    return dict(zip((Role.other, Role.policy), names if len({*names}) > 1 else map(str, paths), strict=True))


def evaluated(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Return the models that the evaluation is about, by role, in its order."""
    return {role: nodes["eval"].inputs[role] for role in nodes["eval"].config.models}
