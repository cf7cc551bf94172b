"""Find the run that `stage=chat` and `stage=export` use: the run of the typed settings, or else the last run.

Neither command trains anything. Without typed settings, models and roles come from the last run's manifests alone."""

import logging
from dataclasses import dataclass
from typing import Any

from stages.config.choices import Command, ExportFormat, Role
from stages.config.errors import UserError
from stages.config.schema import POLICY_STAGES, Config, Target
from stages.pipeline import provenance
from stages.pipeline.evaluation_graph import evaluated_models
from stages.store.manifest import manifest_of, read_manifest
from stages.store.node import Node, PublishedNode, published_node
from stages.store.sealed_json import rebuild_command
from stages.store.store import Store

log = logging.getLogger(__name__)

# stages at which a run with a policy can end, the last first
ENDS = (Target.report, Target.eval, *POLICY_STAGES)


@dataclass(frozen=True)
class FinishedRun:
    """A run in the store: models by role, in the order of the evaluation, and the evaluation, if any. `name` stands for
    the run in messages."""

    name: str
    models: dict[str, Node]
    evaluation: Node | None

    def model(self, role: Role, key: str) -> Node:
        """Return the model of a role, or the policy under the name of its objective. In a run without a policy, the only
        trained model stands for it. Raise UserError, naming `key`, if the run has no such model."""
        if role in self.models:
            return self.models[role]
        policy = self.models.get(Role.policy)
        if policy and role == policy.stage:  # the role is its objective
            return policy
        trained = [model for model in self.models.values() if model.stage != Target.base]
        if role == Role.policy and len(trained) == 1:
            return trained[0]
        raise UserError(
            f"{key}={role}: {self.name} has no such model. Use {', '.join(self.models)}."
        )


def find_run(
    cfg: Config, typed_graph: dict[str, Node], store: Store, overrides: list[str]
) -> tuple[FinishedRun, list[Node]]:
    """Return a run and the nodes that the command uses, all of them in the store. `typed_graph`: the graph of the typed
    settings, empty without any.
    Raise UserError if no run has ended in this store, or a node that the command needs is missing."""
    if typed_graph:
        run = FinishedRun("this run", evaluated_models(typed_graph), typed_graph["eval"])
    else:
        run = last_run(cfg, store)
    if cfg.stage == Command.chat:
        used = [run.model(cfg.chat.model, "chat.model")]
    elif cfg.export.format is ExportFormat.dataset:
        used = nodes_trained_on(run.models)
        judged = [node.inputs["judged"] for node in used if "judged" in node.inputs]
        require_nodes(judged, cfg, store, overrides)  # which say where a prompt is from
    else:
        used = [run.model(cfg.export.model, "export.model")]
    require_nodes(used, cfg, store, overrides)
    return run, used


def require_nodes(nodes: list[Node], cfg: Config, store: Store, overrides: list[str]) -> None:
    """Fetch what only the mirror has. Raise UserError for the first node that is missing or damaged, with the command
    that builds it."""
    for node in nodes:
        folder = store.folder(node)
        manifest = read_manifest(folder)
        damage = manifest and store.damage_message(folder, manifest)
        if damage:
            problem = f"stage={cfg.stage}: {folder} is damaged ({damage})"
            raise UserError(f"{problem}. To rebuild it: {rebuild_command(folder)}")
        if not store.fetch(node):
            command = provenance.command(provenance.stage_to_type(node), overrides)
            problem = f"stage={cfg.stage}: {node} is not in {store.root}"
            raise UserError(f"{problem}. Build it first: {command}")


def last_run(cfg: Config, store: Store) -> FinishedRun:
    """Return the run of the newest link in `outputs/latest`, one with a policy if there is any. Raise UserError without
    a link."""
    end = newest_end(store, *ENDS) or newest_end(store, Target.sft)
    if not end:
        demo = provenance.command("report", [])
        other = provenance.command(cfg.stage, ["recipe=NAME"])
        problem = f"stage={cfg.stage}: there is no finished run in {store.root}"
        raise UserError(f"{problem}. {demo} makes one. For another, type its settings: {other}.")
    evaluation = end.inputs.get("eval")
    if evaluation and store.fetch(evaluation):  # which names the models
        end = published_node(store.root, end.stage, end.fingerprint, {})
    run = run_of(end)
    command = manifest_of(store.folder(end)).get("command", "")
    log.info(
        "No settings are typed, so stage=%s uses the last run: %s, %s", cfg.stage, run.name, command
    )
    return run


def newest_end(store: Store, *last_to_first: Target) -> Node | None:
    """Return the node of these stages whose link in `outputs/latest` is the newest, or the last linked node that
    descends from it: it belongs to the same run. None without links."""
    linked_at = dict[Node, float]()
    seen = dict[str, Node]()
    for stage in last_to_first:
        link = store.root / "latest" / stage
        manifest = read_manifest(link)
        if manifest:
            node = published_node(store.root, stage, manifest["fingerprint"], seen)
            linked_at[node] = link.lstat().st_mtime
    newest = max(linked_at, key=linked_at.__getitem__, default=None)
    # a node that descends from the newest belongs to the same run, and names more roles
    return next((node for node in linked_at if newest in node.lineage), None)


def config_of(node: Node) -> dict[str, Any]:
    """Return the settings of a node. Raise UserError if it was deleted."""
    if not node.config:
        raise UserError(
            f"{node} is not in this store, so its run is not known. Type the run's settings."
        )
    return node.config if isinstance(node, PublishedNode) else vars(node.config)


def run_of(end: Node) -> FinishedRun:
    """Return the run that ends in a report, an evaluation, a policy or an SFT model."""
    evaluation = end if end.stage == Target.eval else end.inputs.get("eval")
    if evaluation:
        models = {role: evaluation.inputs[role] for role in config_of(evaluation)["models"]}
        return FinishedRun(str(end), models, evaluation)
    sft = next(node for node in end.lineage if node.stage == Target.sft)
    models = {str(Role.base): sft.inputs["base"], str(Role.sft): sft}
    if end.stage in POLICY_STAGES:
        models[str(Role.policy)] = end
    return FinishedRun(str(end), models, None)


def nodes_trained_on(models: dict[str, Node]) -> list[Node]:
    """Return the nodes that models were trained on: pairs of every round, labelled completions, and SFT's examples."""
    trained = [models[role] for role in (Role.dpo, Role.policy, Role.kto) if role in models]
    pairs = list[Node]()
    labels = list[Node]()
    for model in trained:  # an arm may have labels, too
        if model.stage == Target.kto and model.inputs["unpaired"] not in labels:
            labels.append(model.inputs["unpaired"])
        while model.stage == Target.dpo:
            if model.inputs["pairs"] not in pairs:
                pairs.insert(0, model.inputs["pairs"])
            model = model.inputs["policy"]  # of the round before
    tables = [*pairs, *labels]
    sft = models.get(Role.sft) or models[Role.policy]
    if config_of(sft)["train"]:
        tables.append(sft.inputs["data"])
    return tables
