"""Find the run that a command without settings is about: the last run in the store.

Commands on a finished model and `stage=report` take its nodes from their manifests, and `stage=plan` shows its command.
What a manifest records is only shown: it never becomes a setting, since somebody else may have written it."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stages.config.choices import Role
from stages.config.command_record import Object
from stages.config.commands import commands_on
from stages.config.errors import UserError, visible
from stages.config.installation import recorded_settings
from stages.config.schema import Config
from stages.config.stage_table import POLICY_STAGES, STAGES, Target
from stages.pipeline import provenance
from stages.pipeline.evaluation_graph import evaluated_models
from stages.preflight import programs_and_servers
from stages.store import stage_sources
from stages.store.manifest import Manifest, command_of, manifest_of, read_manifest
from stages.store.node import Graph, Node, PublishedNode, published_node
from stages.store.sealed_json import WRONG_SHAPE, Damaged, rebuild_command
from stages.store.store import Store

log = logging.getLogger(__name__)

# stages at which a run with a policy can end, the last first
ENDS = (Target.report, Target.eval, *POLICY_STAGES)
TARGETS_ON_LAST_RUN = ("plan", Target.report)
# Keys and blocks that say nothing of which run a command is about
SELECTING_NO_RUN = {
    *("stage", "outputs", "tracker", "upstream", "rebuild", "store", "launch", "limits", "hydra"),
    *("report", *commands_on(Object.run, Object.model, Object.evaluation)),
}
DEFAULT_RUN = "recipe=demo"  # the setting that stands for none
# A report without these inputs has nothing to say
REPORTED = ("base", "data", "sft", "eval")


@dataclass(frozen=True)
class FinishedRun:
    """A run in the store: models by role, in the order of the evaluation, and the evaluation, if any. `name` stands for
    the run in messages, and `settings` are those that its manifest records, to be shown."""

    name: str
    models: dict[str, Node]
    evaluation: Node | None
    settings: list[str] = field(default_factory=list)

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


def selects_run(keys: Iterable[str]) -> bool:
    """Return whether one of these typed keys says which run a command is about."""
    blocks = {re.split("[./]", key)[0] for key in keys}
    return not blocks <= SELECTING_NO_RUN


def find_run(cfg: Config, typed_graph: dict[str, Node], store: Store) -> FinishedRun:
    """Return the run that a command is about. `typed_graph`: the graph of the typed settings, empty without any.
    Raise UserError if no run has ended in this store."""
    if typed_graph:
        return FinishedRun("this run", evaluated_models(typed_graph), typed_graph["eval"])
    return last_run(cfg, store)


def require_nodes(
    nodes: Sequence[Node],
    cfg: Config,
    store: Store,
    overrides: list[str],
    recorded: Sequence[str] = (),
) -> None:
    """Fetch what only the mirror has. Raise UserError for the first node that is missing or damaged, with the command
    that builds it. `recorded`: the settings of the run, if none are typed."""
    for node in nodes:
        folder = store.folder(node)
        manifest = read_manifest(folder)
        damage = manifest and store.damage_message(folder, manifest)
        if damage:
            problem = f"stage={cfg.stage}: {folder} is damaged ({damage})"
            raise UserError(f"{problem}. To rebuild it: {rebuild_command(folder)}")
        if not store.fetch(node):
            command = command_in_words(provenance.stage_to_type(node), overrides, recorded)
            problem = f"stage={cfg.stage}: {node} is not in {store.root}"
            raise UserError(f"{problem}. Build it first: {command}")


def command_in_words(stage: str, overrides: Sequence[str], recorded: Sequence[str]) -> str:
    """Return the command of a stage with recorded settings, behind those of them that a user should look at first."""
    command = provenance.command(stage, [*overrides, *recorded])
    reaches = programs_and_servers.recorded_reaches(recorded)
    if not reaches:
        return command
    sentence = programs_and_servers.sentence_of(reaches)
    return f"(look first at {visible(sentence)}) {command}"


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
    with damaged_if_odd(store.folder(end) / "manifest.json"):
        run = run_of(end)
    manifest = manifest_of(store.folder(end))
    log.info(
        "No settings are typed, so stage=%s uses the last run: %s, %s",
        cfg.stage,
        run.name,
        command_of(manifest),
    )
    return replace(run, settings=settings_of_run(manifest) or [])


@contextmanager
def damaged_if_odd(file: Path) -> Iterator[None]:
    """Raise Damaged, naming the file, where manifests lack what a run has."""
    try:
        yield
    except (StopIteration, *WRONG_SHAPE) as error:
        raise Damaged(
            file, f"the manifests from there on are not those of a run: {error!r}"
        ) from error


def settings_of_run(manifest: Manifest) -> list[str] | None:
    """Return the settings of a run as a manifest records them; None if it records no command of this program."""
    try:
        settings = recorded_settings(manifest.get("command"))
    except ValueError:
        return None
    return [word for word in settings if selects_run([word.lstrip("+").partition("=")[0]])]


def is_about_last_run(stage: str, typed: Mapping[str, str], store: Store) -> bool:
    """Return whether a plan or a report is typed without settings, in a store with a last run of other settings than
    the default ones, or with a finished report."""
    if stage not in TARGETS_ON_LAST_RUN or "stage" not in typed or selects_run(typed):
        return False
    end = end_of_last_run(store)
    if end is None:
        return False
    has_report = stage == Target.report and end.stage == Target.report
    is_default_run = settings_of_run(manifest_of(store.folder(end))) == []
    return has_report or not is_default_run


def end_of_last_run(store: Store) -> Node | None:
    """Return the last node of the last run, also of one that ended at SFT; None if no run has ended here."""
    return newest_end(store, *ENDS, Target.sft)


def report_again(cfg: Config, store: Store, overrides: list[str]) -> tuple[Graph, list[str]]:
    """Return the nodes of the last report by name, from their manifests, with a report of them by today's code and the
    typed settings, and the recorded settings that its command has, too. Raise UserError if the last run has no report,
    or one of its nodes is missing or damaged."""
    end = end_of_last_run(store)
    assert end is not None, "is_about_last_run has found it"
    settings = settings_of_run(manifest_of(store.folder(end)))
    if end.stage != Target.report:
        problem = f"stage=report: the last run ended at {end}, before a report"
        raise UserError(f"{problem}. {way_to_last_run(cfg, overrides, settings)}")
    if cfg.rebuild not in (None, Target.report):
        problem = f"rebuild={cfg.rebuild}: without settings only the report is written again"
        way_out = way_to_last_run(cfg, overrides, settings)
        raise UserError(f"{problem}. {way_out} rebuild={cfg.rebuild}")
    missing_roles = [role for role in REPORTED if role not in end.inputs]
    if missing_roles:
        file = store.folder(end) / "manifest.json"
        raise Damaged(file, f"its inputs lack {', '.join(missing_roles)}")
    require_nodes([*end.inputs.values()], cfg, store, overrides, settings or ())
    log.info("No settings are typed, so the report of the last run is written again: %s", end)
    version = STAGES[Target.report].version
    edited = stage_sources.of_process().edited(Target.report)
    report = Node(Target.report, version, cfg.report, end.inputs, edited=edited)
    return {**end.inputs, Target.report: report}, settings or []


def way_to_last_run(cfg: Config, overrides: list[str], settings: list[str] | None) -> str:
    """Return the sentence with the command of a stage for the last run, whose settings are None if they are not known."""
    if settings is None:
        example = provenance.command(cfg.stage, [*overrides, "recipe=NAME"])
        return f"Its settings are not known. Type them: {example}"
    recorded = settings or [DEFAULT_RUN]
    return f"Type its settings: {command_in_words(cfg.stage, overrides, recorded)}"


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
