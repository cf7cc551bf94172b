"""Build the nodes that a target needs, as `make` does: inputs first, and only nodes that the store does not have."""

import gc
import importlib
import logging
from collections.abc import Callable

from stages.config.blocks.evaluation import Answer
from stages.config.blocks.objective import Training
from stages.config.blocks.sampling import DrawnCandidates
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.config.stage_table import STAGES, Target
from stages.hardware import allocator, machine
from stages.launch import processes
from stages.pipeline import provenance
from stages.store import locks, stage_sources
from stages.store.allowance import Allowance
from stages.store.node import Node, PublishedNode, in_build_order
from stages.store.source_files import hold_files_unchanged
from stages.store.store import Store
from stages.store.workspace import OpenResource, StageDir
from stages.tracking.tracker import track

log = logging.getLogger(__name__)

Tell = Callable[[Node, str], object]  # takes a node that is running, done or reused


def tell_nobody(node: Node, state: str) -> None:
    """The default of who is told of nodes."""


def build(
    targets: list[Node],
    store: Store,
    cfg: Config,
    overrides: list[str],
    tell: Tell = tell_nobody,
) -> None:
    """Build the targets and their missing inputs, and let the links in `latest/` point at the targets' nodes. `tell`
    learns of each node that begins or ends. On `launch.node_rank` above 0, join the work of node 0.
    Raise LimitReached at a limit of `limits`. The first node begins however late it is, so that a command that is
    repeated goes on."""
    allowance = Allowance(cfg.limits.minutes, cfg.limits.money)
    if cfg.launch.node_rank > 0:
        return processes.join_training(cfg.launch, targets, store, allowance)
    # The lock keeps stage=gc from removing a node that this build uses.
    with locks.share_store(store.root), store.exchange(targets), OpenResource() as open_resource:
        # two nodes may be the same computation
        missing = {node.fingerprint for node in store.missing(targets, pull=True)}
        has_built = False
        for node in in_build_order(targets):
            # what is known from a manifest alone has no settings of this run
            is_missing = node.fingerprint in missing and not isinstance(node, PublishedNode)
            if is_missing and has_built:
                allowance.stop_if_late(f"before {node}")
            if is_missing and build_node(
                node, store, cfg, overrides, open_resource, allowance, tell
            ):
                has_built = True
                continue
            if store.folder(node).exists():
                log.info("%s: reused %s", node, store.folder(node))
            tell(node, "reused")
        store.link_latest(targets)


def build_node(
    node: Node,
    store: Store,
    cfg: Config,
    overrides: list[str],
    open_resource: OpenResource,
    allowance: Allowance,
    tell: Tell,
) -> bool:
    """Run a node's stage under the node's lock, and publish the result. Return False if another process has built the
    node meanwhile."""
    from stages.store.text_lengths import text_lengths  # imports pyarrow, which only a build needs

    with store.claim(node, allowance) as folder:
        if folder is None:
            return False
        tell(node, "running")
        # Python imports a stage when it is built, which may be hours after the graph was wired
        stage_sources.require_source(node.stage, stage_sources.of_process().digest(node.stage))
        log.info("%s <- %s", node, ", ".join(map(str, node.inputs.values())) or "configuration")
        inputs = {role: store.folder(input_node) for role, input_node in node.inputs.items()}
        store.verify(*inputs.values(), weights=node.stage != Target.report)
        # The workers of a training import the stage themselves.
        workers = isinstance(node.config, Training) and processes.world_size(node) > 1
        stage = None if workers else importlib.import_module(STAGES[node.stage].module)
        give_back_memory(node, open_resource)
        with track(cfg.tracker, node, store.root) as runs:
            out = StageDir(
                folder,
                runs.log,
                open_resource=open_resource,
                call_folder=store.root / "cache" / "calls",
                allowance=allowance,
            )
            attempts = provenance.begin_attempt(out, runs.wandb_id)
            with hold_files_unchanged(node, store.digest_cache, folder):
                if stage is None:
                    metrics = processes.train_in_workers(cfg.launch, node, inputs, out, runs.log)
                else:
                    config = processes.let_workers_divide(cfg.launch, node, inputs, out)
                    with allocator.keep_freed_memory():
                        metrics = stage.run(config, inputs, out)
            record = provenance.end_attempt(attempts, node, overrides, metrics, out.warnings)
            lengths = text_lengths(node.stage, folder)
            if lengths:
                record["lengths"] = lengths
            runs.published(store.folder(node), store.publish(node, record))
        seconds = record["wall_seconds"]
        log.info(
            "%s: built %s in %.1f s: %s", node, store.folder(node), seconds, metrics["summary"]
        )
        tell(node, "done")
    return True


def give_back_memory(node: Node, open_resource: OpenResource) -> None:
    """Free the memory of the nodes before this one. Only some stages use an open sampler."""
    if not isinstance(node.config, DrawnCandidates | Answer):
        open_resource.clear()
    # a trainer and its model refer to each other, and would stay beside this node's model
    gc.collect()
    machine.give_back_gpu_memory()


def require_inputs(targets: list[Node], store: Store, overrides: list[str]) -> None:
    """Raise UserError for the first input of the targets that is not built (`upstream=require`)."""
    for target in targets:
        for input_node in target.inputs.values():
            if input_node not in targets and not store.is_built(input_node):
                build_command = provenance.command(provenance.stage_to_type(input_node), overrides)
                message = f"upstream=require: {target} needs {input_node}, which is not built."
                raise UserError(f"{message} Build it with: {build_command}")
