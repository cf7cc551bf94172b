"""The run that `stage=chat` and `stage=export` are about: that of the settings that are typed, or the last one.

Neither trains anything. Where no settings are typed, the models and their roles are those that the manifests of the
last run name, whatever the configuration says.
"""

import errno
import logging
import os
from dataclasses import dataclass, field, replace

from stages.config.blocks.pairs import Unpaired
from stages.config.choices import Command, ExportFormat, Role
from stages.config.errors import UserError
from stages.config.schema import Config, Target
from stages.pipeline import provenance
from stages.pipeline.build import build, require_inputs
from stages.pipeline.evaluation_graph import TITLES, evaluated
from stages.pipeline.graph import VERSIONS, published
from stages.store.manifest import manifest_of, read_manifest
from stages.store.node import Node, PublishedNode
from stages.store.sealed_json import rebuild_command
from stages.store.store import Store

log = logging.getLogger(__name__)

ENDS = (Target.report, Target.eval, Target.dpo)  # of runs with a policy, the last first


@dataclass(frozen=True)
class FinishedRun:
    """Models by role, in the order of their evaluation, and what they are called; what evaluated them, if anything
    did; and what a dataset of the run is made of. `name` says in a message which run this is."""

    name: str
    models: dict[str, Node]
    titles: dict[str, str]
    evaluation: Node | None
    dataset: list[Node] = field(default_factory=list)

    def model(self, role: Role, key: str) -> Node:
        """Return the model that `key` asks for. Raises UserError where the run has none of this role."""
        if role not in self.models:
            raise UserError(f"{key}={role}: {self.name} has no such model, but {', '.join(self.models)}.")
        return self.models[role]


def find(cfg: Config, nodes: dict[str, Node], store: Store, overrides: list[str]) -> tuple[FinishedRun, list[Node]]:
    """Return a run, and of its nodes those that the command is about, all of them in the store. `nodes`: the graph of
    the settings that are typed; empty where none are.

    Raises:
        UserError: where no run has ended in this store, or it does not hold what is asked for.
    """
    publishes = cfg.stage == Command.export and cfg.export.format is ExportFormat.dataset
    if nodes:
        data = published(cfg, nodes) if publishes else []
        run = FinishedRun("this run", evaluated(nodes), nodes["eval"].config.models, nodes["eval"], data)
    else:
        run = last(cfg, store)
    if publishes:  # the tables of pairs and of single completions cost no more than to count
        if not nodes:
            require([node for node in run.dataset if node.stage != Target.unpaired], cfg, store, overrides)
        require_inputs(run.dataset, store, overrides)
        build(run.dataset, store, cfg, overrides)
        return run, run.dataset
    if cfg.stage == Command.chat and cfg.chat.side_by_side:
        chosen = [*run.models.values()]
    else:
        role = cfg.chat.model if cfg.stage == Command.chat else cfg.export.model
        chosen = [run.model(role, f"{cfg.stage}.model")]
    require(chosen, cfg, store, overrides)
    return run, chosen


def require(nodes: list[Node], cfg: Config, store: Store, overrides: list[str]) -> None:
    """Raise UserError for the first of these nodes that the store does not hold whole: which command builds it."""
    for node in nodes:
        manifest = read_manifest(store.folder(node))
        if manifest and (damage := store.damage(store.folder(node), manifest)):
            again = rebuild_command(store.folder(node))
            raise UserError(f"stage={cfg.stage}: {store.folder(node)} is damaged ({damage}). Again: {again}")
        for name in manifest["files"] if manifest else ():
            if not os.access(file := store.folder(node) / name, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        if not store.find(node):
            way = provenance.command(provenance.target_of(node), overrides)
            raise UserError(f"stage={cfg.stage}: {node} is not in {store.root}, and nothing is built. Build it: {way}")


def last(cfg: Config, store: Store) -> FinishedRun:
    """Return the run that `outputs/latest` was last pointed at."""
    ends = linked(store, *ENDS) or linked(store, Target.sft)
    if not ends:
        raise UserError(
            f"stage={cfg.stage}: no run has ended in {store.root}. {provenance.command('report', [])} makes the "
            f"demo's; or type the settings of one: {provenance.command(cfg.stage, ['recipe=NAME'])}."
        )
    newest = max(ends, key=ends.__getitem__)
    # A report that descends from the newest is of the same run, and names more roles.
    end = next(node for node in ends if newest.fingerprint in {n.fingerprint for n in node.lineage})
    run = run_of(end, cfg.unpaired)
    manifest = manifest_of(store.folder(end))
    log.info("No settings are typed: stage=%s is about %s, %s", cfg.stage, run.name, manifest.get("command", ""))
    return run


def linked(store: Store, *stages: Target) -> dict[Node, float]:
    """Return the nodes that `outputs/latest` links to, each with the time at which it was linked."""
    links = [store.root / "latest" / stage for stage in stages]
    return {
        published_node(store, link.name, manifest["fingerprint"], {}): link.lstat().st_mtime
        for link in links
        if (manifest := read_manifest(link))
    }


def published_node(store: Store, stage: str, fingerprint: str, seen: dict[str, Node]) -> Node:
    """Return a published node, and all that it descends from, as manifests tell of them. `seen`: those so far."""
    if fingerprint not in seen:
        manifest = read_manifest(store.root / stage / fingerprint) or {"version": 0, "config": {}, "inputs": {}}
        keys = {role: (each["stage"], each["fingerprint"]) for role, each in manifest["inputs"].items()}
        inputs = {role: published_node(store, *key, seen) for role, key in keys.items()}
        version, config = manifest["version"], manifest["config"]
        seen[fingerprint] = PublishedNode(stage, version, config, inputs, folder_name=fingerprint)
    return seen[fingerprint]


def run_of(end: Node, unpaired: Unpaired) -> FinishedRun:
    """Return the run that ends in a published node: a report, an evaluation, a policy or an SFT model."""
    evaluation = end if end.stage == Target.eval else end.inputs.get("eval")
    if evaluation:
        titles = dict(evaluation.config["models"])
        models = {role: evaluation.inputs[role] for role in titles}
    else:
        sft = next(node for node in end.lineage if node.stage == Target.sft)
        models = {str(Role.base): sft.inputs["base"], str(Role.sft): sft}
        models |= {str(Role.policy): end} if end.stage == Target.dpo else {}
        titles = {role: TITLES.get(Role(role), model.stage.upper()) for role, model in models.items()}
    return FinishedRun(str(end), models, titles, evaluation, learnt_from(models, unpaired))


def learnt_from(models: dict[str, Node], unpaired: Unpaired) -> list[Node]:
    """Return what a dataset of published models is made of, as `graph.published` does: of every round pairs and, by
    the same rules, labels of single completions; and what SFT learnt from."""
    policy, tables = models.get(Role.policy), list[Node]()
    while policy and policy.stage == Target.dpo:
        pairs = policy.inputs["pairs"]
        rules = {name: pairs.config[name] for name in ("unfinished", "validation_fraction")}
        single = Node("unpaired", VERSIONS["unpaired"], replace(unpaired, **rules), {"judged": pairs.inputs["judged"]})
        tables = [pairs, single, *tables]
        policy = policy.inputs["policy"]
    sft = models[Role.sft]
    return tables + ([sft.inputs["data"]] if sft.config["train"] else [])
