"""Data and the sources that join it: each is a node of its own, so that one more reads itself alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.data import Data, OneSource, ReadLimits, Source
from stages.config.blocks.labels import Label
from stages.config.blocks.sampling import CandidateFile
from stages.store.node import Node


def with_sources(name: str, block: Data, node: Callable[..., Node]) -> dict[str, Node]:
    """A node of `data` under this name, after one for each of its sources."""
    of, alone = block.of or "data.sources", block.audit.of_rows_alone
    read = [
        node("source", OneSource(as_read(source), block.max_bad, block.form, alone, block.own, f"{of}[{i}]"))
        for i, source in enumerate(block.sources)
    ]
    joined = replace(block, sources=[as_joined(s, r.config.source) for s, r in zip(block.sources, read, strict=True)])
    inputs = {f"source_{i}": source for i, source in enumerate(read, 1)}
    return {f"{name}_{role}": source for role, source in inputs.items()} | {name: node("data", joined, **inputs)}


def with_limits(block: Any, limits: ReadLimits) -> Any:
    """Return a node's block whose files are read within these limits."""
    if isinstance(block, Label | CandidateFile):
        return replace(block, limits=limits)
    if not isinstance(block, OneSource):
        return block
    against = [replace(source, limits=limits) for source in block.audit.against or []]
    audit = replace(block.audit, against=against or None)
    return replace(block, source=replace(block.source, limits=limits), audit=audit)


def as_read(source: Source) -> Source:
    """A source without what is decided where it joins others."""
    return replace(source, rows=None, weight=None, epochs=None)


def as_joined(source: Source, pinned: Source) -> Source:
    """What else there is to a source. Its files stand in the fingerprint of its own node, wherever they lie; a hub
    dataset, which alone is pinned to a revision, goes by its name."""
    path = source.path if pinned.revision else Path(source.path).name
    task = source.of_task if source.task else None
    kept = {key: getattr(source, key) for key in ("check", "rows", "weight", "epochs")}
    return Source(path, pinned.revision, source.subset, source.hub_split, task=task, **kept)
