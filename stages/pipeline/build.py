"""How a target is built: like make, inputs first, each node under its lock."""

import importlib
import logging

from stages.config.blocks.evaluation import Answer
from stages.config.blocks.sampling import Sample
from stages.config.errors import UserError
from stages.config.schema import Config, Target
from stages.hardware import machine
from stages.launch import processes
from stages.pipeline import provenance
from stages.store import locks
from stages.store.node import Node, in_order
from stages.store.source_files import Outside
from stages.store.store import Store
from stages.store.workspace import OpenResource, StageDir
from stages.tracking.tracker import track

log = logging.getLogger(__name__)


def build(targets: list[Node], store: Store, cfg: Config, overrides: list[str]) -> None:
    """Like make: nodes that the store holds are used, missing ones are built, inputs first."""
    if cfg.launch.node_rank > 0:
        return processes.follow(cfg.launch, targets, store)
    with locks.shared(store.root):  # what is found here is not removed before it is used
        make(targets, store, cfg, overrides)


def make(targets: list[Node], store: Store, cfg: Config, overrides: list[str]) -> None:
    """Build what the store lacks, each node under its lock, and point `latest/` at all of it."""
    from stages.store.text_lengths import text_lengths  # with pyarrow, for what builds

    missing, kept = store.missing(targets), OpenResource()
    for node in in_order(targets):
        if node not in missing:
            if store.folder(node).exists():
                log.info("%s: reused %s", node, store.folder(node))
            continue
        with store.claim(node) as folder:
            if folder is None:  # built by another process meanwhile, or looked at again by `rebuild`
                log.info("%s: reused %s", node, store.folder(node))
                continue
            log.info("%s <- %s", node, ", ".join(map(str, node.inputs.values())) or "the configuration")
            outside = Outside(node, store.remembered)
            store.verify(*map(store.folder, node.inputs.values()), weights=node.stage != Target.report)
            alone = processes.world_size(node) == 1
            stage = importlib.import_module(f"stages.{node.stage}") if alone else None  # workers load it themselves
            inputs = {role: store.folder(n) for role, n in node.inputs.items()}
            if not isinstance(node.config, Sample | Answer):  # a sampler stays open for those alone
                kept.clear()
                machine.give_back_gpu_memory()
            with track(cfg.tracker, node, store.root) as run:
                work = StageDir(folder, run.log, kept=kept, calls=store.root / "cache" / "calls")
                attempts = provenance.begin(work, run.id)
                with outside.still(folder):
                    metrics = processes.execute(cfg.launch, node, stage, inputs, work, run.log)
                record = provenance.end(attempts, node, overrides, metrics, work.warnings)
                if lengths := text_lengths(node.stage, folder):
                    record["lengths"] = lengths
                run.published(store.folder(node), store.publish(node, record))
            log.info("%s: made %s in %.1f s: %s", node, store.folder(node), record["wall_seconds"], metrics["summary"])
    store.link_latest(targets)


def require_inputs(targets: list[Node], store: Store, overrides: list[str]) -> None:
    """`upstream=require`: refuse to build anything but the targets."""
    for target in targets:
        for given in target.inputs.values():
            if not store.find(given):
                wanted = provenance.command(provenance.target_of(given), overrides)
                raise UserError(f"{target} needs {given}, which is not built. Build it with: {wanted}")
