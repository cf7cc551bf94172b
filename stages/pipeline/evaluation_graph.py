"""The nodes that evaluate the models of a run.

Every model answers every set of prompts (`answer`). With `eval.judged`, each opponent's answers are put beside the
policy's (`versus`), and a labeler judges these pairs of answers (`label`). With `benchmark.tasks`, every model answers
these (`benchmark`). The node `eval` reads all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stages.config.blocks.data import Suites
from stages.config.blocks.evaluation import (
    CONSTANT,
    FORMS,
    REFERENCE,
    REFERENCES,
    ROUND,
    Answer,
    Compared,
    Versus,
)
from stages.config.blocks.models import Model
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Align, Role, Split
from stages.config.installation import engine_version
from stages.config.schema import Config
from stages.pipeline.subgraphs import MakeNode, wire_labels
from stages.store.node import Built, Graph, Node

TITLES = {
    Role.base: "Base",
    Role.control: "Control",
    Role.control_pairs: "Control pairs",
    REFERENCE: REFERENCES,
}
MAX_PROMPTS = 1_000_000  # that are compared, without eval.judged.prompts
# at most: enough prompts to see that a labeler often prefers a constant answer
CONSTANT_PROMPTS = 50
# prefix of the names of judgements that people still owe: the report does not wait for them
WAITING = "waiting_"


def wire_evaluation(
    cfg: Config,
    make_node: MakeNode,
    models: Graph,
    sets: Graph,
    reward: Graph,
    is_built: Built,
    *rounds: Node,
) -> Graph:
    """Return the nodes of the evaluation by name. `models`: the evaluated ones, by role. `sets`: nodes with prompts
    (`data`, `pairs` or `unpaired` for held-out labels, `outside`, `judged_prompts`, `suites`), texts (`retained`), and
    all other labels that were trained on. `reward`: the reward model, if it labels. `rounds`: SFT and each round's."""
    prompts = prompt_sets(cfg, sets)
    answers = {
        f"{name}_{role}": make_node("answer", block, model=model, **source)
        # the models are the outer loop, so that each is loaded once
        for role, model in models.items()
        for name, (block, source) in prompts.items()
        if role != Role.base or not block.form  # a base is tied to no chat template
    }
    on_validation = replace(cfg.answer, split=Split.validation, open=0)
    by_round = {
        f"{ROUND}{number}": make_node("answer", on_validation, model=model, data=sets["data"])
        for number, model in enumerate(rounds if cfg.generates(Split.validation) else ())
    }
    judged = Graph()
    opponents = name_opponents(cfg, models) if isinstance(cfg.eval.judged, Compared) else {}
    if opponents:
        # the prompts of `eval.judged.source`, else of held-out pairs, else of the data
        name = [*prompts][-1]
        compared = (name, *prompts[name])
        judged = wire_comparisons(
            cfg, make_node, models, opponents, answers, compared, reward, is_built
        )
    instruments = Graph()
    if isinstance(cfg.eval.judged, Compared):
        label = cfg.eval.judged.label
        instruments["judge"] = make_node("label", label, **reward if label.by_reward else {})
    if cfg.benchmark.tasks:
        tasks = replace(cfg.benchmark, engine=engine_version(cfg.benchmark.runtime.python))
        answers |= {
            f"benchmark_{role}": make_node("benchmark", tasks, model=model)
            for role, model in models.items()
        }
        instruments["benchmark"] = make_node("benchmark", tasks)
    eval_inputs = {
        name: node for name, node in judged.items() if name.startswith(("versus_", "judged_"))
    }
    titles = name_models(cfg, models)
    block = replace(
        cfg.eval,
        models=titles,
        max_new_tokens=cfg.answer.max_new_tokens,
        compared=name_compared(opponents, titles),
        instruments={name: node.fingerprint for name, node in instruments.items()},
        # other nodes read these texts, and other nodes hold the settings of suites and labeler
        retention=[],
        suites=Suites(),
        judged=cfg.eval.judged.of_results,
    )
    inputs = {**sets, **models, **answers, **by_round, **eval_inputs}
    return answers | by_round | judged | {"eval": make_node("eval", block, **inputs)}


def prompt_sets(cfg: Config, sets: Graph) -> dict[str, tuple[Answer, Graph]]:
    """Return, by the name of the answers, the `answer` block and the node that holds the prompts. Prompts of held-out
    pairs are a set if the user's file brought them, or if there are no other prompts."""
    by_name = dict[str, tuple[Answer, Graph]]()
    if "suites" in sets:
        forms = FORMS if "templates" in (cfg.eval.suites.names or ()) else ()
        block, source = replace(cfg.answer, split=Split.test), {"data": sets["suites"]}
        by_name |= {
            f"answer_{form or 'suites'}": (replace(block, form=form), source)
            for form in (None, *forms)
        }
    if "outside" in sets:
        by_name["answer_outside"] = replace(cfg.answer, split=Split.test), {"data": sets["outside"]}
    if cfg.tested:
        by_name["answer"] = cfg.answer, {"data": sets["data"]}
    held_out = next(
        (n for n in ("pairs", "unpaired") if n in sets and vars(cfg)[n].validation_fraction), None
    )
    if held_out and (cfg.own_prompts or not cfg.tested):
        by_name["answer_held_out"] = cfg.answer, {held_out: sets[held_out]}
    if "judged_prompts" in sets:
        assert isinstance(cfg.eval.judged, Compared)  # it names the prompts
        block = replace(cfg.answer, split=Split.test, open=cfg.eval.judged.prompts or MAX_PROMPTS)
        by_name["answer_judged"] = block, {"data": sets["judged_prompts"]}
    return by_name


def name_opponents(cfg: Config, models: Graph) -> dict[str, str]:
    """Return the models of `eval.judged.against`: the name of each comparison, and the opponent's role or path."""
    opponents, folders = dict[str, str](), cfg.eval.judged.folders
    for number, name in enumerate(cfg.eval.judged.against, 1):
        if name == Role.sft and name not in models:  # the policy is SFT itself
            name = str(Role.base) if Role.base in models else str(Role.other)
        key = name
        if name in folders:
            key = (
                str(Role.other)
                if Role.other in models and name == folders[0]
                else f"model_{number}"
            )
        opponents[key] = name
    return opponents


def wire_comparisons(
    cfg: Config,
    make_node: MakeNode,
    models: Graph,
    opponents: Mapping[str, str],
    answers: Graph,
    compared: tuple[str, Answer, Graph],
    reward: Graph,
    is_built: Built,
) -> Graph:
    """Return the nodes of `eval.judged` by name: for each opponent, both models' answers side by side, and labels.
    `answers` are nodes by name. `compared` is the name of the compared answers, their `answer` block and the node of
    their prompts by role."""
    name, block, prompts = compared
    assert isinstance(cfg.eval.judged, Compared)  # else nothing is compared
    label = cfg.eval.judged.label
    max_prompts = cfg.eval.judged.prompts or MAX_PROMPTS
    by_reward = reward if label.by_reward else {}
    nodes, opponent_answers = Graph(), Graph()
    for key, path in opponents.items():
        if key in models:
            opponent_answers[key] = answers[f"{name}_{key}"]
        elif key != REFERENCE:
            nodes[key] = make_node("base", other_model_block(cfg, path))
            nodes[f"{name}_{key}"] = opponent_answers[key] = make_node(
                "answer", block, model=nodes[key], **prompts
            )
    versus = {key: Versus(key, max_prompts) for key in opponents}
    # a labeler that prefers one constant answer to real ones cannot be trusted: the report says so
    if not label.asks:
        first = [*opponent_answers, *opponents][0]
        versus[CONSTANT] = Versus(first, min(max_prompts, CONSTANT_PROMPTS), constant=True)
    policy = {**prompts, "model": models[Role.policy], "policy": answers[f"{name}_{Role.policy}"]}
    for key, sides in versus.items():
        other = (
            {"other": opponent_answers[sides.against]} if sides.against in opponent_answers else {}
        )
        nodes[f"versus_{key}"] = pool = make_node("versus", sides, **policy, **other)
        judgements, members = wire_labels(label, make_node, pool, **by_reward)
        nodes |= {
            f"{member}_of_{key}": node for member, node in members.items() if node is not judgements
        }
        unanswered = label.asks is not None and not label.asks.answered
        waits_for_people = unanswered and not is_built(judgements)
        nodes[f"{WAITING if waits_for_people else ''}judged_{key}"] = judgements
    return nodes


def other_model_block(cfg: Config, path: str) -> Model:
    """Return the block of a model in `eval.judged.against` that this run does not train or start from."""
    return Model(path, None, key=f"eval.judged.against[{cfg.eval.judged.against.index(path)}]")


def name_models(cfg: Config, models: Graph) -> dict[str, str]:
    """Return the models' titles for the report by role: the role or the objective that trained the model. If the run
    trains nothing, the two compared models are named by their folders."""
    if cfg.align is Align.given:
        names = name_folders([str(cfg.model.path), str(cfg.examine.model)])
        titles = {**TITLES, Role.sft: names[0], Role.policy: names[1]}
        return {role: titles[role] for role in models}
    if Role.other not in models:
        by_stage = {name: objective.title for name, objective in OBJECTIVES.items()}
        by_stage |= {"dpo": "SimPO"} if cfg.dpo.reference_free else {}
        return {role: TITLES.get(role) or by_stage[model.stage] for role, model in models.items()}
    names = name_folders([cfg.eval.judged.folders[0], cfg.model.path or "random weights"])
    return dict(zip((Role.other, Role.policy), names, strict=True))


def name_compared(opponents: Mapping[str, str], titles: Mapping[str, str]) -> dict[str, str]:
    """Return the titles of opponents by key: those of their roles, or the names of their folders."""
    titles = {**TITLES, **titles}
    folders = {key: path for key, path in opponents.items() if key not in titles}
    names = dict(zip(folders, name_folders([*folders.values()]), strict=True))
    return {key: names.get(key) or titles[key] for key in opponents}


def name_folders(folders: Sequence[str]) -> list[str]:
    """Return the names of model folders, or their paths where two have the same name. NODE/model is called NODE."""
    paths = [*map(Path, folders)]
    names = [path.parent.name if path.name == "model" else path.name for path in paths]
    return [
        str(path) if names.count(name) > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]


def evaluated_models(nodes: Mapping[str, Node]) -> Graph:
    """Return the nodes of the evaluated models by role, in the order of the evaluation."""
    return {role: nodes["eval"].inputs[role] for role in nodes["eval"].config.models}
