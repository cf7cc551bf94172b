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
    *read, last = nodes
    sums, lines, summaries, other_metrics = (
        Counter[str](),
        list[str](),
        list[str](),
        dict[str, Any](),
    )
    for each in read:
        own = work(out.path / each.fingerprint)
        try:
            metrics = source.run(each.config, {}, own)
        finally:
            gather(own, out)
        sums.update({name: metrics[name] for name in SUMS})
        lines += metrics["read"]
        other_metrics |= metrics
        summaries.append(metrics["summary"])
    quarantine = out / "quarantine.jsonl"
    before = quarantine.read_text() if quarantine.exists() else ""
    metrics = data.run(
        last.config, {role: out.path / each.fingerprint for role, each in last.inputs.items()}, out
    )
    if before:
        quarantine.write_text(before + (quarantine.read_text() if quarantine.exists() else ""))
    sums.update({"unwanted": metrics["unwanted"]})
    report = {"read": lines, "summary": "; ".join([*summaries, metrics["summary"]])}
    return other_metrics | metrics | {name: sums[name] for name in SUMS} | report


def gather(own: StageDir, out: StageDir) -> None:
    out.warnings += own.warnings
    if (own / "quarantine.jsonl").exists():
        with open(out / "quarantine.jsonl", "a") as quarantine:
            quarantine.write((own / "quarantine.jsonl").read_text())
