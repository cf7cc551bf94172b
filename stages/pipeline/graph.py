"""The graph of the whole pipeline. Start reading here: `build.py` then builds a target from it.

Every stage is one function, `run(cfg, inputs, out) -> metrics`, in a module of its own: `cfg` is its block of the
configuration, `inputs` the folders of its inputs by role, `out` the folder it fills.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config import trl_arguments
from stages.config.choices import Adapter, Command, DPOReference, Role, Split
from stages.config.errors import UserError
from stages.config.schema import Config, Data
from stages.store import pinning
from stages.store.node import Node

# A stage's version is part of its nodes' fingerprints: raise it when the stage would make something else.
VERSIONS = {"base": 4, "data": 6, "sft": 9, "sample": 7, "label": 5, "pairs": 4, "reference": 8, "dpo": 9}
VERSIONS |= {"answer": 8, "eval": 7, "report": 5}

NEXT = {"base": "sft", "data": "sft", "sft": "sample", "sample": "label", "label": "pairs", "pairs": "reference"}
NEXT |= {"reference": "dpo", "dpo": "eval", "answer": "eval", "eval": "report"}

TITLES = {Role.base: "Base", Role.sft: "SFT", Role.control: "Control"}  # a policy's is its objective's: DPO


def graph(cfg: Config, cache: Path) -> dict[str, Node]:
    """Every node of this configuration, by name. `cache` remembers the digests of outside files."""

    def node(stage: str, block: Any, **inputs: Node) -> Node:
        block, digests = pinning.pin(block, cache)
        return Node(stage, VERSIONS[stage], block, inputs, digests, trl_arguments.not_neutral(block))

    roots = {"base": node("base", cfg.model), "data": node("data", cfg.data)}
    if cfg.outside:  # labelled sets for the evaluation alone: they change nothing before it
        held_out = [replace(source, splits={"test": 1.0}) for source in cfg.outside]
        roots = {"outside": node("data", Data(None, held_out, cfg.data.max_bad)), **roots}
    others = dict[str, Node]()
    for seed in cfg.seeds:
        others |= {f"{k}_seed_{seed}": made for k, made in chain(with_seed(cfg, seed), node, **roots).items()}
    main = roots | chain(cfg, node, **roots)
    evaluations = [made.fingerprint for name, made in (others | main).items() if made.stage == "eval"]
    if len(set(evaluations)) < len(evaluations):
        raise UserError(f"seeds={cfg.seeds} change nothing: sft, sample and dpo all have seeds of their own.")
    nodes = others | main
    return nodes | {"report": node("report", cfg.report, **nodes)}


def chain(
    cfg: Config, node: Callable[..., Node], base: Node, data: Node, outside: Node | None = None
) -> dict[str, Node]:
    """From SFT to the evaluation, with one seed."""
    sft = policy = node("sft", cfg.sft, base=base, data=data)
    frozen = {"frozen": base} if cfg.dpo.adapter is Adapter.continued else {}  # what the SFT's adapter lies on
    scoring = replace(cfg.reference, weights=cfg.dpo.held, forward=cfg.dpo.forward)
    nodes = {"sft": sft}
    for r in range(cfg.rounds):  # more than one round is iterative DPO
        made: dict[str, Node] = {}
        if cfg.label.brings_pool:
            judged = node("label", cfg.label)
        else:
            made["sample"] = pool = node("sample", replace(cfg.sample, round=r), policy=policy, data=data)
            judged = node("label", cfg.label, pool=pool)
        pairs = node("pairs", cfg.pairs, judged=judged)
        anchor = policy if cfg.dpo.reference is DPOReference.previous else sft
        reference = node("reference", scoring, reference=anchor, pairs=pairs)
        policy = node("dpo", cfg.dpo, policy=policy, pairs=pairs, reference=reference, **frozen)
        made |= {"label": judged, "pairs": pairs, "reference": reference, "dpo": policy}
        last = r == cfg.rounds - 1
        nodes |= {name if last else f"{name}_{r + 1}": n for name, n in made.items()}
    sets = {"outside": outside, "data": data} if outside else {"data": data}
    if cfg.label.brings_pool:
        sets["pairs"] = pairs  # whose prompts may be anybody's
    return nodes | evaluation(cfg, node, {Role.base: base, Role.sft: sft, Role.policy: policy}, **sets)


def evaluation(
    cfg: Config, node: Callable[..., Node], models: dict[Role, Node], data: Node, **sets: Node
) -> dict[str, Node]:
    """The answers of the models, in their order, and what compares them. `sets`: `outside`, whose prompts are asked
    too, and `pairs`, whose prompts do not count."""
    answers = dict[str, Node]()
    for role, model in models.items():  # a sweep answers for base and SFT once
        if "outside" in sets:
            tested = replace(cfg.answer, split=Split.test)
            answers[f"answer_outside_{role}"] = node("answer", tested, model=model, data=sets["outside"])
        answers[f"answer_{role}"] = node("answer", cfg.answer, model=model, data=data)
    titles = {str(role): TITLES.get(role, model.stage.upper()) for role, model in models.items()}
    compared = {str(role): model for role, model in models.items()}
    return answers | {"eval": node("eval", replace(cfg.eval, models=titles), data=data, **sets, **compared, **answers)}


def evaluated(nodes: dict[str, Node]) -> dict[str, Node]:
    """The models that the evaluation is about, by role, in its order."""
    return {role: nodes["eval"].inputs[role] for role in nodes["eval"].config.models}


def with_seed(cfg: Config, seed: int) -> Config:
    """The same run from another seed; a stage that was given a seed of its own keeps it."""
    other = replace(cfg, seed=seed, sft=replace(cfg.sft), sample=replace(cfg.sample), dpo=replace(cfg.dpo))
    for block in (other.sft, other.sample, other.dpo):
        block.seed = seed if block.seed == cfg.seed else block.seed
    return other


def targets(cfg: Config, nodes: dict[str, Node]) -> list[Node]:
    """The nodes that `stage` asks for: its own, or the models that it uses."""
    models = evaluated(nodes)
    if cfg.stage == Command.chat and cfg.chat.side_by_side:
        return list(models.values())
    if cfg.stage in (Command.chat, Command.export):
        role = cfg.chat.model if cfg.stage == Command.chat else cfg.export.model
        if role not in models:
            raise UserError(f"{cfg.stage}.model={role}: this run has no such model, but {', '.join(models)}.")
        return [models[role]]
    found = [node for node in nodes.values() if node.stage == cfg.stage]
    if not found:
        raise UserError(f"this configuration has no {cfg.stage} stage: label={cfg.label.labeler} needs none.")
    return found
