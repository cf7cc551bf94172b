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
    # of a model that was trained elsewhere, if one is examined
    faults: list[str] | None = None
    verdict: str | None = None
    findings: list[dict[str, Any]] | None = None

    def show(self) -> None:
        if self.page and self.nodes[-1].stage == Target.report:
            log.info("The report: %s", self.page)
        if self.labels_page:
            log.info("The page of the labels: %s", self.labels_page)
        if self.next_command:
            log.info("Next: %s", self.next_command)


def built_nodes(page: "LivePage") -> list[BuiltNode]:
    """Return the nodes of a run that the store has: a reused node's inputs may be deleted."""
    present = list[BuiltNode]()
    for node in page.nodes:
        folder = page.store.folder(node)
        manifest = read_manifest(folder)
        if manifest is None:  # deleted, as only a reused node had read it
            continue
        each = BuiltNode(
            name=page.names.get(node.fingerprint, node.stage),
            stage=node.stage,
            fingerprint=node.fingerprint,
            state="built" if page.states[node.fingerprint] == "done" else "reused",
            folder=folder,
            metrics=manifest["metrics"],
            warnings=manifest["warnings"],
        )
        present.append(each)
    return present


def examination_of(built: list[BuiltNode]) -> dict[str, Any] | None:
    """Return what a run found in the model that it examined; None if it examined none."""
    for node in built:
        if node.stage == Target.examine:
            return node.metrics
    return None


def page_address(page: "LivePage") -> Path | None:
    """Return the page of a run. If it could not be written, it is in the folder of a report, or there is none."""
    if page.is_written:
        return page.address
    page_in_report = page.store.folder(page.target) / page.address.name
    return page_in_report if page_in_report.exists() else None


def write_labels_page(store: Store, nodes: dict[str, Node], targets: list[Node]) -> Path | None:
    """Write `labels.html` into the store's root if the targets are made of labels. Return it, or None without one."""
    if not store.is_writable:
        return None
    labels_html = store.root / "labels.html"
    if targets[0].stage == Target.report:
        page_in_report = store.folder(targets[0]) / labels_html.name
        content = page_in_report.read_bytes() if page_in_report.exists() else b""
    else:
        content = page_of_labels_below(store, nodes, targets)
    if content and safe_files.write_page(labels_html, content):
        return labels_html
    return None


def page_of_labels_below(store: Store, nodes: dict[str, Node], targets: list[Node]) -> bytes:
    """Return the page of the labels that the targets are made of; nothing without any, or if they are deleted."""
    last = targets[-1]
    labels = last if last.stage == Target.label else nodes.get("label")
    if labels is None or not any(labels in target.lineage for target in targets):
        return b""
    folder = store.folder(labels)
    if not folder.exists():  # deleted since
        return b""
    from stages.pages import label_page  # imported here, as few runs label anything

    return label_page.page(folder).encode()
