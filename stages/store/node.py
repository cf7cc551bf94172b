"""A node of the graph, and its fingerprint: a hash of the computation and of the content that it works on."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.config.blocks.arguments import TrainerArguments
from stages.config.limits import NOT_FINGERPRINTED
from stages.store.manifest import edited_source, read_manifest
from stages.store.sealed_json import Damaged
from stages.store.stage_sources import EditedSource

Graph = dict[str, "Node"]  # nodes by name: those of a run, or a part of them
Built = Callable[["Node"], bool]  # tells if a node is in the store


@dataclass(frozen=True, eq=False)
class Node:
    """One computation: a stage with its block of the configuration and its input nodes by role. `path_digests` maps
    each local path in the block to a digest of the file's content: a moved file changes no fingerprint. `fixed` holds
    settings of `runtime` that change this node's result: the micro-batch, for some losses. `edited` is the stage's source
    if it is not the recorded one."""

    stage: str
    version: int
    config: Any
    inputs: Mapping[str, "Node"] = field(default_factory=dict)
    path_digests: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    edited: EditedSource | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that enter the fingerprint: all except `runtime` and neutral fields, with digests for paths.
        Null keys, and blocks with only null keys, are left out: keys that are added later as null change none."""
        return {**self._content(self.config), **self.fixed}

    def _content(self, value: Any) -> Any:
        if isinstance(value, TrainerArguments):
            return self._content(value.given)
        if is_dataclass(value):
            hashed_fields = [
                key for key in fields(value) if not key.metadata.get(NOT_FINGERPRINTED)
            ]
            content = {key.name: self._content(getattr(value, key.name)) for key in hashed_fields}
            return {
                k: v for k, v in content.items() if k != "runtime" and v is not None and v != {}
            }
        if isinstance(value, dict):  # keys of others: TRL's arguments, options of the user's code
            return {
                k if isinstance(k, str) else json.dumps(k): self._content(v)
                for k, v in value.items()
            }
        if isinstance(value, list):
            return [self._content(v) for v in value]
        return self.path_digests.get(value, value) if isinstance(value, str) else value

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits. Equal fingerprints mean the same computation on the same content."""
        inputs = {role: node.fingerprint for role, node in self.inputs.items()}
        key = {
            "stage": self.stage,
            "version": self.version,
            "config": self.settings,
            "inputs": inputs,
        }
        if self.edited:
            key["source"] = self.edited.digest
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def lineage(self) -> tuple["Node", ...]:
        """This node and all its direct and indirect inputs. Inputs come first, this node last."""
        ancestors = {
            node.fingerprint: node
            for input_node in self.inputs.values()
            for node in input_node.lineage
        }
        return (*ancestors.values(), self)

    @cached_property
    def roots(self) -> dict[str, str]:
        """The fingerprints of base and data in the lineage. Of several bases the one that was trained counts."""
        fingerprints = {
            node.stage: node.fingerprint for node in self.lineage if node.stage in ("base", "data")
        }
        return fingerprints | {
            node.stage: node.fingerprint for node in reversed(self.lineage) if node.stage == "base"
        }

    def __str__(self) -> str:
        return f"{self.stage} {self.fingerprint}"


@dataclass(frozen=True, eq=False)
class PublishedNode(Node):
    """A node read from its manifest. `config` is a mapping, and the fingerprint is the name of the node's folder."""

    folder_name: str = ""

    @cached_property
    def fingerprint(self) -> str:
        return self.folder_name


def published_node(
    store: Path,
    stage: str,
    fingerprint: str,
    seen: dict[str, Node],
    descendants: frozenset[str] = frozenset(),
) -> Node:
    """Return a node of a store with its ancestors, from their manifests. `seen`: nodes read so far, by fingerprint.
    Raise Damaged if a node is among its own inputs. `descendants`: those that this node is an input of."""
    if fingerprint in descendants:
        raise Damaged(store / stage / fingerprint / "manifest.json", "it is among its own inputs")
    if fingerprint not in seen:
        manifest = read_manifest(store / stage / fingerprint) or {
            "version": 0,
            "config": {},
            "inputs": {},
        }
        below = descendants | {fingerprint}
        inputs = dict[str, Node]()
        for role, each in manifest["inputs"].items():
            key = (each["stage"], each["fingerprint"])
            inputs[role] = published_node(store, *key, seen, below)
        seen[fingerprint] = PublishedNode(
            stage,
            manifest["version"],
            manifest["config"],
            inputs,
            edited=edited_source(manifest),
            folder_name=fingerprint,
        )
    return seen[fingerprint]


def nearest_by_stage(targets: Sequence[Node]) -> dict[str, Node]:
    """Return by stage the node that the targets are made of: the nearest, and of several the one that its role names
    as the stage's or the policy's. Policies that a later round samples from are left out."""
    level, nearest = [*targets], {node.stage: node for node in targets}
    while level:
        edges = [(node.stage, role, n) for node in level for role, n in node.inputs.items()]
        inputs = [(role, n) for stage, role, n in edges if (stage, n.stage) != ("sample", "dpo")]
        inputs.sort(key=lambda each: each[0] in (each[1].stage, "policy", "answer_policy"))
        nearest = {node.stage: node for _, node in inputs} | nearest
        level = [*{node.fingerprint: node for _, node in inputs}.values()]
    return nearest


def in_build_order(targets: Sequence[Node]) -> list[Node]:
    """Return the targets and all their direct and indirect inputs, each node after its inputs. Nodes without a model
    in their lineage come first, so that an unusable file is reported before any training."""
    lineage = dict.fromkeys(node for target in targets for node in target.lineage)
    return sorted(
        lineage, key=lambda node: any(ancestor.stage == "base" for ancestor in node.lineage)
    )
