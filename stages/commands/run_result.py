"""The result of a run that builds nodes: what each node made, the pages, and the next command."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.commands.result import Result
from stages.config.schema import Target
from stages.store import safe_files
from stages.store.manifest import read_manifest
from stages.store.node import Node
from stages.store.store import Store

if TYPE_CHECKING:
    from stages.pages.live import LivePage

log = logging.getLogger(__name__)


@dataclass
class BuiltNode:
    """A node of a run. `state`: built or reused. `metrics`: its figures, and their `summary` as a sentence. `warnings`:
    what limits them."""

    name: str
    stage: str
    fingerprint: str
    state: str
    folder: Path
    metrics: dict[str, Any]
    warnings: list[str]


@dataclass
class RunResult(Result):
    """`page` and `labels_page`: HTML files. None of a read-only store, which has no page of this run."""

    nodes: list[BuiltNode]
    page: Path | None
    labels_page: Path | None
    next_command: str | None
    faults: list[str] | None = None  # of a model that was trained elsewhere, if one is examined

    def show(self) -> None:
        is_report = self.nodes and self.nodes[-1].stage == Target.report
        lines = {
            "The report": self.page if is_report else None,
            "The page of the labels": self.labels_page,
            "Next": self.next_command,
        }
        for title, text in lines.items():
            if text:
                log.info("%s: %s", title, text)


def built_nodes(page: "LivePage") -> list[BuiltNode]:
    """Return the nodes of a run that the store has, in the order of building. A reused node's inputs may be deleted."""
    built = list[BuiltNode]()
    for node in page.nodes:
        folder = page.store.folder(node)
        state = "built" if page.states[node.fingerprint] == "done" else "reused"
        if manifest := read_manifest(folder):
            name, metrics = page.names.get(node.fingerprint, node.stage), manifest["metrics"]
            figures = metrics, manifest["warnings"]
            built.append(BuiltNode(name, node.stage, node.fingerprint, state, folder, *figures))
    return built


def found_faults(built: list[BuiltNode]) -> list[str] | None:
    """Return the faults of the model that a run examined; None if it examined none."""
    found = [node.metrics["faults"] for node in built if node.stage == Target.examine]
    return found[0] if found else None


def page_address(page: "LivePage") -> Path | None:
    """Return the page of a run. Of a report in a read-only store it is in the node's folder."""
    if page.store.is_writable:
        return page.address
    report = page.store.folder(page.target) / page.address.name
    return report if report.exists() else None


def write_labels_page(store: Store, nodes: dict[str, Node], targets: list[Node]) -> Path | None:
    """Write `labels.html` into the store's root if the targets are made of labels. Return it, or None without one."""
    if targets[0].stage == Target.report:
        file = store.folder(targets[0]) / "labels.html"
        content = file.read_bytes() if file.exists() else b""
    else:
        label = targets[-1] if targets[-1].stage == Target.label else nodes.get("label")
        is_used = label and any(label in target.lineage for target in targets)
        content = read_labels(store.folder(label)) if label and is_used else b""
    place = store.root / "labels.html"
    return place if content and safe_files.write_if_allowed(place, content) else None


def read_labels(folder: Path) -> bytes:
    """Return the page of a label node; nothing if the node is deleted."""
    from stages.pages import label_page  # imported here, as few runs label anything

    return label_page.page(folder).encode() if folder.exists() else b""
