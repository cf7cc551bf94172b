"""The result of a run that builds nodes: what each node made, the pages, and the next command."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.commands.result import Result
from stages.config.extras import modules_of_extras
from stages.config.stage_table import Target
from stages.store import safe_files
from stages.store.manifest import read_manifest
from stages.store.node import Node
from stages.store.store import Store

if TYPE_CHECKING:
    from stages.pages.live import LivePage

log = logging.getLogger(__name__)

# in the store's root, as in a report's folder
ANSWERS_PAGE = "answers.html"
LABELS_PAGE = "labels.html"
QUARANTINE = "quarantine.jsonl"  # in the folder of a node that left rows out


@dataclass
class BuiltNode:
    """A node of a run. `state`: built or reused. `metrics`: its figures, and their `summary` as a sentence. `warnings`:
    what limits them. `quarantine`: the file of the rows that it could not use, None without such rows."""

    name: str
    stage: str
    fingerprint: str
    state: str
    folder: Path
    metrics: dict[str, Any]
    warnings: list[str]
    quarantine: Path | None


@dataclass
class RunResult(Result):
    """`page`, `answers_page` and `labels_page`: HTML files. None of a read-only store, which has no page of this run.
    `trackers`: where the trackers have the runs of this command, and what opens them. `further`: keys that extras add."""

    nodes: list[BuiltNode]
    page: Path | None
    answers_page: Path | None
    labels_page: Path | None
    next_command: str | None
    trackers: list[str]
    further: dict[str, Any]

    def as_plain(self) -> dict[str, Any]:
        plain = super().as_plain()
        return plain | plain.pop("further")

    def show(self) -> None:
        if self.page and self.nodes[-1].stage == Target.report:
            log.info("The report: %s", self.page)
        if self.answers_page:
            log.info("All answers: %s", self.answers_page)
        if self.labels_page:
            log.info("The page of the labels: %s", self.labels_page)
        for line in self.trackers:
            log.info("%s", line)
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
        quarantine = folder / QUARANTINE
        each = BuiltNode(
            name=page.names.get(node.fingerprint, node.stage),
            stage=node.stage,
            fingerprint=node.fingerprint,
            state="built" if page.states[node.fingerprint] == "done" else "reused",
            folder=folder,
            metrics=manifest["metrics"],
            warnings=manifest["warnings"],
            quarantine=quarantine if quarantine.exists() else None,
        )
        present.append(each)
    return present


def first_of(built: list[BuiltNode], stage: str) -> BuiltNode | None:
    """Return the first node of a stage; None if the run has none."""
    for node in built:
        if node.stage == stage:
            return node
    return None


def results_of_extras(built: list[BuiltNode]) -> dict[str, Any]:
    """Return the keys that extras add to the result of a run."""
    further = dict[str, Any]()
    for module in modules_of_extras("run_result"):
        further |= module.read_result(built)
    return further


def step_after_report(built: list[BuiltNode]) -> str | None:
    """Return the first command of a report's `What to do next`; None if the run made no report."""
    node = first_of(built, Target.report)
    return node.metrics.get("next_command") if node else None


def page_address(page: "LivePage") -> Path | None:
    """Return the page of a run. If it could not be written, it is in the folder of a report, or there is none."""
    if page.is_written:
        return page.address
    in_report = page.store.folder(page.target) / page.address.name
    return in_report if in_report.exists() else None


def write_answers_page(store: Store, targets: list[Node]) -> Path | None:
    """Write a report's page of all answers into the store's root. Return the page, or None without one."""
    return write_page(store, ANSWERS_PAGE, page_in_report(store, targets[0], ANSWERS_PAGE))


def page_in_report(store: Store, target: Node, name: str) -> bytes:
    """Return a page of the target's folder; nothing if the target is no report, or has no such page."""
    page = store.folder(target) / name
    is_there = target.stage == Target.report and page.exists()
    return page.read_bytes() if is_there else b""


def write_labels_page(store: Store, nodes: dict[str, Node], targets: list[Node]) -> Path | None:
    """Write the page of the labels that the targets are made of into the store's root. Return it, or None without one."""
    if targets[0].stage == Target.report:
        content = page_in_report(store, targets[0], LABELS_PAGE)
    else:
        content = page_of_labels_below(store, nodes, targets)
    return write_page(store, LABELS_PAGE, content)


def write_page(store: Store, name: str, content: bytes) -> Path | None:
    """Write a page into the store's root. Return it, or None if it has no content or cannot be written."""
    page = store.root / name
    if store.is_writable and content and safe_files.write_page(page, content):
        return page
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
