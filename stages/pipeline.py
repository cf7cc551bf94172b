"""The graph of the whole pipeline, and how a target is built from it. Start reading here.

Every stage is one function, `run(cfg, inputs, out) -> metrics`, in a module of its own: `cfg` is its block of the
configuration, `inputs` the folders of its inputs by role, `out` the folder it fills.
"""

import importlib
import json
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages import checks, gc, hardware, outside, plan, provenance, tracking
from stages.config import Config, DPOReference, Precision, Stage, Upstream
from stages.errors import UserError
from stages.store import SCRATCH, Manifest, Node, Store, Work

log = logging.getLogger(__name__)

# A stage's version is part of its nodes' fingerprints: raise it when the stage would make something else.
VERSIONS = dict.fromkeys("base data sft sample label pairs reference dpo answer eval report".split(), 1)

MODULES = {"eval": "evaluate"}  # else stages/<stage>
NEXT = dict(base="sft", data="sft", sft="sample", sample="label", label="pairs", pairs="reference", reference="dpo")
NEXT |= dict(dpo="eval", answer="eval", eval="report")


def graph(cfg: Config, cache: Path) -> dict[str, Node]:
    """Every node of this configuration, by name. `cache` remembers the digests of outside files."""

    def node(stage: str, block: Any, **inputs: Node) -> Node:
        block, digests = outside.pin(block, cache)
        return Node(stage, VERSIONS[stage], block, inputs, digests, checks.not_neutral(block))

    base = node("base", cfg.model)
    data = node("data", cfg.data)
    sft = policy = node("sft", cfg.sft, base=base, data=data)
    nodes = {"base": base, "data": data, "sft": sft}
    for r in range(cfg.rounds):  # more than one round is iterative DPO
        if cfg.label.labeler == "dataset":
            judged = node("label", cfg.label)
        else:
            pool = nodes["sample"] = node("sample", replace(cfg.sample, round=r), policy=policy, data=data)
            judged = node("label", cfg.label, pool=pool)
        pairs = node("pairs", cfg.pairs, judged=judged)
        anchor = policy if cfg.dpo.reference is DPOReference.previous else sft
        reference = node("reference", cfg.reference, reference=anchor, pairs=pairs)
        policy = node("dpo", cfg.dpo, policy=policy, pairs=pairs, reference=reference)
        nodes |= {"label": judged, "pairs": pairs, "reference": reference, "dpo": policy}
    models = {"base": base, "sft": sft, "dpo": policy}  # a sweep over DPO answers for base and SFT once
    answers = {name: node("answer", cfg.answer, model=model, data=data) for name, model in models.items()}
    nodes |= {f"answer_{name}": answer for name, answer in answers.items()}
    nodes["eval"] = node("eval", cfg.eval, data=data, reference=sft, policy=policy, **answers)
    nodes["report"] = node("report", cfg.report, **nodes)
    return nodes


def build(node: Node, store: Store, cfg: Config, overrides: list[str], done: dict[str, Manifest]) -> Manifest:
    """Like make: a node that the store holds is used, a missing one is built after its inputs."""
    if node.fingerprint in done:
        return done[node.fingerprint]
    if store.rebuild or not store.find(node):
        for given in node.inputs.values():
            build(given, store, cfg, overrides, done)
    with store.claim(node) as folder:
        manifest = execute(node, folder, store, cfg, overrides) if folder else store.find(node)
    assert manifest is not None
    if not folder:
        log.info("%s: reused %s", node, store.folder(node))
    store.link_latest(node)
    done[node.fingerprint] = manifest
    return manifest


def execute(node: Node, folder: Path, store: Store, cfg: Config, overrides: list[str]) -> Manifest:
    """Run one stage in its partial folder and publish it."""
    log.info("%s <- %s", node, ", ".join(map(str, node.inputs.values())) or "the configuration")
    attempts_file = folder / SCRATCH / "attempts.json"
    attempts = json.loads(attempts_file.read_text()) if attempts_file.exists() else []
    stage = importlib.import_module(f"stages.{MODULES.get(node.stage, node.stage)}")
    with tracking.track(cfg.tracker, node, store.root) as tracked:
        started = time.time()
        attempts.append({"started": started, "wandb_run": tracked.id})
        attempts_file.write_text(json.dumps(attempts))
        hardware.reset_peak_memory()
        work = Work(folder, tracked.log)
        metrics = stage.run(node.config, {role: store.folder(n) for role, n in node.inputs.items()}, work)
        record = {
            "command": provenance.command(node.stage, overrides),
            **provenance.here(),
            "attempts": attempts,
            "started": started,
            "ended": time.time(),
            "wall_seconds": round(time.time() - started, 3),
            "peak_memory": hardware.peak_memory(),
            "metrics": metrics,
            "warnings": work.warnings,
        }
        manifest = store.publish(node, record)
        tracked.published(store.folder(node), manifest)
    log.info("%s: made %s in %.1f s: %s", node, store.folder(node), record["wall_seconds"], metrics["summary"])
    return manifest


def require_inputs(node: Node, store: Store, overrides: list[str]) -> None:
    """`upstream=require`: refuse to build anything but the target."""
    for given in node.inputs.values():
        if not store.find(given):
            wanted = provenance.command(given.stage, overrides)
            raise UserError(f"{node} needs {given}, which is not built. Build it with: {wanted}")


def run(cfg: Config, overrides: list[str], since: float) -> None:
    """Build the target that `cfg.stage` names. `since`: when the command was given (Unix time), for `rebuild=`."""
    checks.refuse(cfg)
    for block in (cfg.sft, cfg.sample, cfg.reference, cfg.dpo, cfg.answer, cfg.eval):
        if block.precision is Precision.auto:
            block.precision = Precision.bf16 if hardware.computes_bf16() else Precision.fp32
    store = Store(Path(cfg.outputs), cfg.rebuild, since)
    nodes = graph(cfg, store.root / "cache" / "digests.json")
    if cfg.stage is Stage.plan:
        plan.show(nodes, store)
    elif cfg.stage is Stage.gc:
        gc.collect(store, cfg.gc.remove)
    else:
        target = nodes[cfg.stage]
        if cfg.upstream is Upstream.require:
            require_inputs(target, store, overrides)
        build(target, store, cfg, overrides, {})
        if target.stage == "report":
            shutil.copy(store.folder(target) / "report.html", store.root / "report.html")
            log.info("The report: %s", store.root / "report.html")
        else:
            log.info("Next: %s", provenance.command(NEXT[target.stage], overrides))
