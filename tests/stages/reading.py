"""Reading sources as the pipeline does: a node for each, and `data`, which joins them."""

from collections import Counter
from pathlib import Path
from typing import Any

from stages import data, source
from stages.config.blocks.data import Data
from stages.config.schema import Config
from stages.pipeline.subgraphs import Wiring
from stages.store.node import Node
from stages.store.source_files import pin
from stages.store.workspace import StageDir
from tests.rows import work

SUMS = ("quarantined", "left_out", "unwanted")


def wired(cfg: Data, cache: Path) -> list[Node]:
    """A node for every source, and last the one that joins them."""
    wiring = Wiring(Config(data=cfg), cache / "digests.json", pin, lambda node: True)
    wiring.join_sources("data", cfg)
    return [*wiring.nodes.values()]


def joined(cfg: Data, out: StageDir) -> dict[str, Any]:
    """Like `ran`, for a whole configuration."""
    return ran(wired(cfg, out.path / "cache"), out)


def ran(nodes: list[Node], out: StageDir) -> dict[str, Any]:
    """Merge the metrics and messages of several `source` stages; `out` collects examples, warnings and quarantine."""
    *sources, last = nodes
    merged = dict[str, Any]()
    counts = Counter[str]()
    messages = list[str]()
    summaries = list[str]()
    for node in sources:
        own = work(out.path / node.fingerprint)
        try:
            metrics = source.run(node.config, {}, own)
        finally:
            gather(own, out)
        merged |= metrics
        counts.update({name: metrics[name] for name in SUMS})
        messages += metrics["read"]
        summaries.append(metrics["summary"])
    inputs = {role: out.path / node.fingerprint for role, node in last.inputs.items()}
    rows_of_sources = quarantine_of(out)
    metrics = data.run(last.config, inputs, out)
    if rows_of_sources:
        (out / "quarantine.jsonl").write_text(rows_of_sources + quarantine_of(out))
    counts["unwanted"] += metrics["unwanted"]
    summaries.append(metrics["summary"])
    return merged | metrics | counts | {"read": messages, "summary": "; ".join(summaries)}


def quarantine_of(out: StageDir) -> str:
    file = out / "quarantine.jsonl"
    return file.read_text() if file.exists() else ""


def gather(own: StageDir, out: StageDir) -> None:
    out.warnings += own.warnings
    with open(out / "quarantine.jsonl", "a") as quarantine:
        quarantine.write(quarantine_of(own))
