"""The graph of the whole pipeline. Start reading here: `build.py` then builds a target from it.

Every stage is one function, `run(cfg, inputs, out) -> metrics`, in a module of its own: `cfg` is its block of the
configuration, `inputs` the folders of its inputs by role, `out` the folder it fills.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from stages.config import trl_arguments
from stages.config.blocks.data import Data, Source
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.labels import Label
from stages.config.blocks.training import OBJECTIVES, SFT, Training
from stages.config.choices import Adapter, Align, Demonstrations, DPOReference, Role, Split
from stages.config.errors import UserError
from stages.config.schema import Config, Target
from stages.pipeline.evaluation_graph import WAITING, MakeNode, evaluation, other_model
from stages.pipeline.provenance import target_of
from stages.pipeline.subgraphs import candidates, labels, with_limits, with_sources
from stages.store import source_files
from stages.store.node import Node

# A stage's version is part of its nodes' fingerprints: raise it when the stage would make something else.
VERSIONS = {"base": 5, "source": 3, "data": 8, "sft": 9, "sample": 8, "label": 7, "pairs": 8, "reference": 9, "dpo": 9}
VERSIONS |= {"unpaired": 2, "reward": 1, "select": 4, "pool": 1, "answer": 10, "versus": 1, "eval": 13, "report": 17}

NEXT = {"base": "sft", "source": "data", "data": "sft", "select": "sft", "sample": "label", "pool": "label"}
NEXT |= {"label": "pairs", "pairs": "reference", "reference": "dpo", "unpaired": "pairs", "answer": "eval"}
NEXT |= {"versus": "eval", "eval": "report"} | {objective.name: objective.next for objective in OBJECTIVES.values()}

WHY_NONE: dict[str, str] = {  # nodes of a stage
    Target.select: "data.tasks.open_sft, sft.demonstrations=selected and control=true have one",
    Target.source: "data.sources names none",
    Target.versus: "eval/judged=judge, reward_model, human or ensemble makes one",
}
# What align=none has none of.
LABELLED = (Target.sample, Target.pool, Target.label, Target.pairs, Target.unpaired, Target.reference, Target.dpo)
SETS = ("outside", "judged_prompts", "retained")  # roots that only the evaluation reads
BEFORE_SFT = ("sample_base", "label_base")  # what demonstrations are selected from, and no preferences

Pin = Callable[[Any, Path], tuple[Any, dict[str, str]]]

SEEDED = ("sample", *OBJECTIVES)  # blocks with a seed of their own, which is the run's where none is given


def graph(
    cfg: Config, cache: Path, pin: Pin = source_files.pin, built: Callable[[Node], bool] = lambda node: True
) -> dict[str, Node]:
    """Every node of this configuration, by name. `cache` remembers the digests of outside files, which `pin` finds.
    `built`: whether a node is in the store, as no report waits for what people are asked."""

    def node(stage: str, block: Any, **inputs: Node) -> Node:
        block, digests = pin(with_limits(block, cfg.data.limits), cache)
        not_neutral = block.not_neutral if isinstance(block, Training) else {}
        return Node(stage, VERSIONS[stage], block, inputs, digests, not_neutral)

    if cfg.without_model:
        return of_somebody(cfg, node)
    roots = {"base": node("base", cfg.model), **with_sources("data", cfg.data, node)}
    if cfg.outside:  # labelled sets for the evaluation alone: they change nothing before it
        held_out = [replace(source, splits={"test": 1.0}) for source in cfg.outside]
        asked = Data(None, held_out, max_bad=cfg.data.max_bad, form=cfg.data.form, of="outside")
        roots = {**with_sources("outside", asked, node), **roots}
    if cfg.eval.judged.source:
        own = [replace(source, splits={"test": 1.0}) for source in cfg.eval.judged.source]
        read = Data(None, own, max_bad=cfg.data.max_bad, form=cfg.data.form, of="eval.judged.source")
        roots = {**with_sources("judged_prompts", read, node), **roots}
    if cfg.eval.retention:
        texts = [replace(source, splits={"sft": 1.0}) for source in cfg.eval.retention]
        read = Data(None, texts, max_bad=cfg.data.max_bad, of="eval.retention")
        roots = {**with_sources("retained", read, node), **roots}
    if cfg.selects:  # seeds share it, as they share the base
        roots |= demonstrations(cfg, node, roots["base"], roots["data"])
    others = dict[str, Node]()
    for seed in cfg.seeds:
        made = chain(with_seed(cfg, seed), node, built, **roots)
        others |= {f"{name}_seed_{seed}": its for name, its in made.items()}
    main = roots | chain(cfg, node, built, **roots)
    evaluations = [made.fingerprint for name, made in (others | main).items() if made.stage == "eval"]
    if len(set(evaluations)) < len(evaluations):
        raise UserError(f"seeds={cfg.seeds} change nothing: sft, sample and dpo all have seeds of their own.")
    nodes = others | main
    told = {name: its for name, its in nodes.items() if not name.startswith(WAITING)}
    return nodes | {"report": node("report", cfg.report, **told)}


def of_somebody(cfg: Config, node: MakeNode) -> dict[str, Node]:
    """Labels and pairs of candidates that somebody has already."""
    if cfg.label.brings_pool:
        return judgements(cfg, node, node("label", cfg.label))
    pool = node("sample", cfg.sample.candidate_file)
    judged, labelling = labels(cfg.label, node, pool)
    return {"sample": pool} | labelling | judgements(cfg, node, judged)


def judgements(cfg: Config, node: MakeNode, judged: Node) -> dict[str, Node]:
    """Judgements, and what becomes of them."""
    made = {"label": judged}
    if cfg.unpaired_wanted:
        made["unpaired"] = node("unpaired", cfg.unpaired, judged=judged)
    return made | {"pairs": node("pairs", cfg.pairs, judged=judged)}


def demonstrations(cfg: Config, node: MakeNode, base: Node, data: Node) -> dict[str, Node]:
    """SFT without a teacher: the base answers the prompts that nobody has answered, and its best answers are kept.
    Generated requests have checks, whoever samples and labels the preferences; unless it is asked for, nothing else
    judges here, and no endpoint answers."""
    label, sample = cfg.label, cfg.sample
    if cfg.sft.demonstrations is None:
        label = Label(labeler="verifier", path=None, revision=None, hub_split="train", max_failed=label.max_failed)
        if sample.sampler == "openai":
            sample = replace(sample, sampler="hf", endpoint=Endpoint(), max_failed=None)
    if sample.brings_prompts:  # which nobody draws
        sample = replace(sample, sampler="hf")
    drawn = {name: getattr(cfg.select, name) for name in ("candidates_per_prompt", "temperatures", "max_new_tokens")}
    asked = replace(sample, split=Split.sft, prompts=None, rounds=1, file=None, pool=None, **drawn)
    pool = node("sample", asked, policy=base, data=data)
    judged = node("label", label, pool=pool)
    return {"sample_base": pool, "label_base": judged, "select": node("select", cfg.select, judged=judged, data=data)}


def chain(
    cfg: Config,
    node: MakeNode,
    built: Callable[[Node], bool],
    base: Node,
    data: Node,
    select: Node | None = None,
    **roots: Node,
) -> dict[str, Node]:
    """From SFT to the evaluation, with one seed."""
    learnt = Demonstrations.selected if select else Demonstrations.given
    sft = policy = node("sft", replace(cfg.sft, demonstrations=learnt), base=base, data=select or data)
    frozen = {"frozen": base} if cfg.dpo.adapter is Adapter.continued else {}  # what the SFT's adapter lies on
    scoring = replace(cfg.reference, weights=cfg.dpo.held, forward=cfg.dpo.forward)
    nodes, sets = {"sft": sft}, {"data": data} | {name: its for name, its in roots.items() if name in SETS}
    if cfg.reward.source.path:
        nodes |= reward_of_its_own(cfg, node, sft)
    reward = {"reward": nodes["reward"]} if "reward" in nodes else {}
    models: dict[str, Node] = {Role.base: base, Role.sft: sft}
    if cfg.align is Align.none:
        if not cfg.sft.train:  # two models that came as they are
            nodes["other"] = node("base", other_model(cfg, cfg.eval.judged.folders[0]))
        before: dict[str, Node] = {Role.base: base} if cfg.sft.train else {Role.other: nodes["other"]}
        return nodes | evaluation(cfg, node, {**before, Role.policy: sft}, sets, reward, built)
    by = reward if cfg.label.by_reward else {}
    for r in range(cfg.rounds):  # more than one round is iterative DPO
        made: dict[str, Node] = {}
        if cfg.label.brings_pool:
            judged = node("label", cfg.label)
        else:
            pool, made = candidates(cfg, node, r, policy, data, {"base": base, "sft": sft})
            judged, labelling = labels(cfg.label, node, pool, **by)
            made |= labelling
        made |= judgements(cfg, node, judged)
        pairs = made["pairs"]
        anchor = policy if cfg.dpo.reference is DPOReference.previous else sft
        reference = node("reference", scoring, reference=anchor, pairs=pairs)
        policy = node("dpo", cfg.dpo, policy=policy, pairs=pairs, reference=reference, **frozen)
        made |= {"reference": reference, "dpo": policy}
        last = r == cfg.rounds - 1
        nodes |= {name if last else f"{name}_{r + 1}": n for name, n in made.items()}
    if cfg.stage == Target.reward and not cfg.reward.source.path:
        nodes["reward"] = node("reward", cfg.reward, policy=sft, judged=judged, pairs=pairs)
    if cfg.control:
        nodes["select_control"] = same = node("select", cfg.select, pairs=pairs)
        nodes["control"] = models[Role.control] = node("sft", as_control(cfg), base=sft, data=same)
    models[Role.policy] = policy
    return nodes | evaluation(cfg, node, models, sets | {"pairs": pairs}, reward, built)


def reward_of_its_own(cfg: Config, node: MakeNode, sft: Node) -> dict[str, Node]:
    """A reward model of preferences that are no part of the chain: labels and pairs of their own."""
    source, known = cfg.reward.source, {key.name for key in fields(Label)}
    given = {key.name: getattr(source, key.name) for key in fields(Source) if key.name in known}
    read = Label(labeler="dataset", max_failed=cfg.label.max_failed, of="reward.source", **given)
    judged = node("label", read)
    pairs = node("pairs", replace(cfg.reward.pairs, of="reward.pairs"), judged=judged)
    reward = node("reward", cfg.reward, policy=sft, judged=judged, pairs=pairs)
    return {"label_reward": judged, "pairs_reward": pairs, "reward": reward}


def as_control(cfg: Config) -> SFT:
    """SFT that does with the chosen completions alone what DPO does with pairs: as long, in the same order."""
    as_dpo = {name: getattr(cfg.dpo, name) for name in vars(cfg.sft) if name in vars(cfg.dpo)}
    as_dpo["trainer"] = {key: cfg.dpo.trainer[key] for key in cfg.dpo.trainer if key in trl_arguments.allowed("sft")}
    own = {"train": True, "learning_rate": cfg.control_learning_rate, "packing": False, "control": True}
    return replace(cfg.sft, **as_dpo | own)


def with_seed(cfg: Config, seed: int) -> Config:
    """The same run from another seed; a stage that was given a seed of its own keeps it."""
    blocks = {name: replace(vars(cfg)[name]) for name in SEEDED}
    for block in blocks.values():
        block.seed = seed if block.seed == cfg.seed else block.seed
    return replace(cfg, seed=seed, **blocks)


def published(cfg: Config, nodes: dict[str, Node]) -> list[Node]:
    """What a dataset is made of: pairs and labels of single completions of every round, and what SFT learns from."""
    rounds = [f"_{r + 1}" for r in range(cfg.rounds - 1)] + [""]
    found = [nodes[f"{name}{which}"] for which in rounds for name in ("pairs", "unpaired") if "pairs" in nodes]
    return found + ([nodes["sft"].inputs["data"]] if cfg.sft.train else [])


def targets(cfg: Config, nodes: dict[str, Node]) -> list[Node]:
    """The nodes that `stage` asks for. What is said of a comparison belongs to that, and to no preferences."""
    mine = [node for name, node in nodes.items() if target_of(node) == cfg.stage and name not in BEFORE_SFT]
    found = [node for node in mine if not (isinstance(node.config, SFT) and node.config.control)]  # that is after DPO
    if not found:
        why = WHY_NONE.get(cfg.stage, f"label={cfg.label.labeler} needs none")
        if cfg.align is Align.none and cfg.stage in LABELLED:
            why = "align=none labels nothing"
        raise UserError(f"this configuration has no {cfg.stage} stage: {why}.")
    return found
