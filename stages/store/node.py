"""A node of the graph, and its fingerprint: the name of a computation on some content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

from stages.config.limits import NEUTRAL


@dataclass(frozen=True, eq=False)
class Node:
    """A stage with its block of the configuration and its inputs by role.

    `path_digests` maps every local path that the block names to a digest of what lies there: the fingerprint names
    content, wherever it lies. `fixed` holds settings of `runtime` that change this node's result, though they change
    no other's: the micro-batch, under a loss that depends on it.
    """

    stage: str
    version: int
    config: Any
    inputs: Mapping[str, "Node"] = field(default_factory=dict)
    path_digests: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What of the configuration enters the fingerprint: everything but `runtime` and what is marked as neutral;
        local paths as digests.

        Null keys are left out, and so are blocks whose keys are all null: a key that is added later, null by default,
        changes no fingerprint.
        """
        return {**self._content(self.config), **self.fixed}

    def _content(self, value: Any) -> Any:
        if is_dataclass(value):
            hashed_fields = [key for key in fields(value) if not key.metadata.get(NEUTRAL)]
            content = {key.name: self._content(getattr(value, key.name)) for key in hashed_fields}
            return {k: v for k, v in content.items() if k != "runtime" and v is not None and v != {}}
        if isinstance(value, dict):  # keys that are not ours: TRL's arguments, the options of one's own parts
            return {k: self._content(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._content(v) for v in value]
        return self.path_digests.get(value, value) if isinstance(value, str) else value

    @cached_property
    def fingerprint(self) -> str:
        """The same fingerprint means the same computation on the same content."""
        inputs = {role: node.fingerprint for role, node in self.inputs.items()}
        key = {"stage": self.stage, "version": self.version, "config": self.settings, "inputs": inputs}
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def lineage(self) -> tuple["Node", ...]:
        """Every node that this one descends from, inputs before what they go into, and itself last."""
        ancestors = {node.fingerprint: node for input_node in self.inputs.values() for node in input_node.lineage}
        return (*ancestors.values(), self)

    @cached_property
    def roots(self) -> dict[str, str]:
        """The base model and the data that this node descends from. Where a pool brought another base in, the one that
        was trained comes first."""
        fingerprints = {node.stage: node.fingerprint for node in self.lineage if node.stage in ("base", "data")}
        return fingerprints | {node.stage: node.fingerprint for node in reversed(self.lineage) if node.stage == "base"}

    def __str__(self) -> str:
        return f"{self.stage} {self.fingerprint}"


@dataclass(frozen=True, eq=False)
class PublishedNode(Node):
    """A node that its manifest alone tells of: `config` is a mapping, and the fingerprint that of its folder."""

    folder_name: str = ""

    @cached_property
    def fingerprint(self) -> str:
        return self.folder_name


def in_build_order(targets: Sequence[Node]) -> list[Node]:
    """Every node that the targets descend from and they themselves, inputs before what they go into; and before all
    others what no model has a part in: a file that cannot be used is told before anything is trained."""
    lineage = dict.fromkeys(node for target in targets for node in target.lineage)
    return sorted(lineage, key=lambda node: any(ancestor.stage == "base" for ancestor in node.lineage))
