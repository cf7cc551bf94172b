"""Find the run that `stage=chat` and `stage=export` use: the run of the typed settings, or else the last run.

Neither command trains anything. Without typed settings, models and roles come from the last run's manifests alone."""

import logging
from dataclasses import dataclass, replace
from typing import Any

from stages.config.blocks.pairs import Unpaired
from stages.config.choices import Command, Role
from stages.config.errors import UserError
from stages.config.schema import POLICY_STAGES, Config, Target
from stages.pipeline import provenance
from stages.pipeline.build import build, require_inputs
from stages.pipeline.evaluation_graph import TITLES, evaluated_models
from stages.pipeline.stage_table import STAGES
from stages.store.manifest import manifest_of, read_manifest
from stages.store.node import Node, PublishedNode, published_node
from stages.store.sealed_json import rebuild_command
from stages.store.store import Store

log = logging.getLogger(__name__)

# stages at which a run with a policy can end, the last first
ENDS = (Target.report, Target.eval, *POLICY_STAGES)


@dataclass(frozen=True)
class FinishedRun:
    """A run in the store: models and titles by role, in the order of the evaluation, and the evaluation, if any.
    `name` stands for the run in messages."""

    name: str
    models: dict[str, Node]
    titles: dict[str, str]
    evaluation: Node | None

    def model(self, role: Role, key: str) -> Node:
        """Return the model of a role; for the policy of a run that has none, its only trained model.
        Raise UserError, naming `key`, if the run has no such model."""
        if role in self.models:
            return self.models[role]
        trained = [model for model in self.models.values() if model.stage != Target.base]
        if role == Role.policy and len(trained) == 1:
            return trained[0]
        if (policy := self.models.get(Role.policy)) and policy.stage == role:
            return policy
        raise UserError(
            f"{key}={role}: {self.name} has no such model. Use {', '.join(self.models)}."
        )


def find_run(
    cfg: Config, nodes: dict[str, Node], store: Store, typed: list[str]
) -> tuple[FinishedRun, list[Node]]:
    """Return a run and the nodes that the command uses, all of them in the store. `nodes`: the graph of the typed
    settings, empty without any.
    Raise UserError if no run has ended in this store, or a node that the command needs is missing."""
    if nodes:
        run = FinishedRun(
            "this run", evaluated_models(nodes), nodes["eval"].config.models, nodes["eval"]
        )
    else:
        run = last_run(cfg, store)
    # exports a dataset: builds the tables of pairs and completions, which is fast
    if cfg.unpaired_wanted:
        dataset = training_tables(run.models, cfg.unpaired)
        if not nodes:
            require_nodes(
                [node for node in dataset if node.stage != Target.unpaired], cfg, store, typed
            )
            trained = [
                n for n in dataset if n.stage == Target.unpaired and isinstance(n, PublishedNode)
            ]
            if trained and any(argument.startswith("unpaired.threshold=") for argument in typed):
                raise UserError(
                    f"unpaired.threshold: KTO trained on {trained[0]} of {run.name}. Leave the key out."
                )
        require_inputs(dataset, store, typed)
        build(dataset, store, cfg, typed)
        return run, dataset
    if cfg.stage == Command.chat and cfg.chat.side_by_side:
        chosen = [*run.models.values()]
    else:
        role = cfg.chat.model if cfg.stage == Command.chat else cfg.export.model
        chosen = [run.model(role, f"{cfg.stage}.model")]
    require_nodes(chosen, cfg, store, typed)
    return run, chosen


def require_nodes(nodes: list[Node], cfg: Config, store: Store, overrides: list[str]) -> None:
    """Raise UserError for the first node that is missing or damaged, with the command that builds it."""
    for node in nodes:
        manifest = read_manifest(store.folder(node))
        if manifest and (damage := store.damage_message(store.folder(node), manifest)):
            rebuild = rebuild_command(store.folder(node))
            raise UserError(
                f"stage={cfg.stage}: {store.folder(node)} is damaged ({damage}). To rebuild it: {rebuild}"
            )
        if not store.find(node):
            build_line = provenance.command(provenance.target_stage(node), overrides)
            raise UserError(
                f"stage={cfg.stage}: {node} is not in {store.root}. Build it first: {build_line}"
            )


def last_run(cfg: Config, store: Store) -> FinishedRun:
    """Return the run of the newest link in `outputs/latest`."""
    if not (end := newest_end(store, *ENDS) or newest_end(store, Target.sft)):
        demo = provenance.command("report", [])
        other = provenance.command(cfg.stage, ["recipe=NAME"])
        ways = f"{demo} makes the demo run. For another run, type its settings: {other}."
        raise UserError(f"stage={cfg.stage}: there is no finished run in {store.root}. {ways}")
    run, command = run_of(end), manifest_of(store.folder(end)).get("command", "")
    log.info(
        "No settings are typed, so stage=%s uses the last run: %s, %s", cfg.stage, run.name, command
    )
    return run


def newest_end(store: Store, *stages: Target) -> Node | None:
    """Return the node of these stages, the last ones of a run first, that `outputs/latest` links to since last. If an
    earlier one of them descends from it, it belongs to the same run, and names more roles."""
    times = {
        published_node(store.root, link.name, manifest["fingerprint"], {}): link.lstat().st_mtime
        for link in (store.root / "latest" / stage for stage in stages)
        if (manifest := read_manifest(link))
    }
    if not times:
        return None
    newest = max(times, key=times.__getitem__)
    return next(
        node for node in times if newest.fingerprint in {n.fingerprint for n in node.lineage}
    )


def config_of(node: Node) -> dict[str, Any]:
    """Return the settings of a node. Raise UserError if it was published, and is no longer in the store."""
    if not node.config:
        raise UserError(
            f"{node} is not in this store, so its run is not known. Type the run's settings."
        )
    return node.config if isinstance(node, PublishedNode) else vars(node.config)


def run_of(end: Node) -> FinishedRun:
    """Return the run that ends in a report, an evaluation, a policy or an SFT model."""
    if evaluation := (end if end.stage == Target.eval else end.inputs.get("eval")):
        titles = dict(config_of(evaluation)["models"])
        models = {role: evaluation.inputs[role] for role in titles}
    else:
        sft = next(node for node in end.lineage if node.stage == Target.sft)
        models = {str(Role.base): sft.inputs["base"], str(Role.sft): sft}
        models |= {str(Role.policy): end} if end.stage in POLICY_STAGES else {}
        titles = {
            role: TITLES.get(Role(role), model.stage.upper()) for role, model in models.items()
        }
    return FinishedRun(str(end), models, titles, evaluation)


def training_tables(models: dict[str, Node], unpaired: Unpaired) -> list[Node]:
    """Return the nodes of a dataset: pairs and labels of every round, and SFT's examples. Labels that KTO
    did not train on have, of a published run, the rules of its pairs."""
    # an arm may have them
    of_labels = (models[role] for role in (Role.dpo, Role.policy, Role.kto) if role in models)
    policy = next((m for m in of_labels if m.stage in (Target.dpo, Target.kto)), None)
    tables = list[Node]()
    kto = next((model for model in models.values() if model.stage == Target.kto), None)
    while policy and policy.stage == Target.dpo:
        pairs = policy.inputs["pairs"]
        names = ("unfinished", "validation_fraction") if isinstance(pairs, PublishedNode) else ()
        rules = {name: config_of(pairs)[name] for name in names}
        single = Node(
            "unpaired",
            STAGES["unpaired"].version,
            replace(unpaired, **rules),
            {"judged": pairs.inputs["judged"]},
        )
        if (
            kto
            and kto.inputs["unpaired"].inputs["judged"].fingerprint
            == pairs.inputs["judged"].fingerprint
        ):
            single = kto.inputs["unpaired"]
        tables = [pairs, single, *tables]
        policy = policy.inputs["policy"]
    tables = [policy.inputs["unpaired"]] if policy and policy.stage == Target.kto else tables
    sft = models.get(Role.sft) or models[Role.policy]
    return tables + ([sft.inputs["data"]] if config_of(sft)["train"] else [])
