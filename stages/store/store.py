"""The artifact store: one folder per node, named by what was computed, published whole or not at all.

`outputs/<stage>/<fingerprint>/` holds a node, `….partial/` one in the making, `outputs/latest/<stage>` links to the
last one used. A node is built under a lock of the kernel's: a killed builder frees it, children that inherit its
descriptor keep it, and whoever takes over resumes what the partial folder holds.
"""

import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock

from stages.config.errors import UserError
from stages.store import whole
from stages.store.node import Node
from stages.store.work import CURVES, SCRATCH

log = logging.getLogger(__name__)

Manifest = dict[str, Any]


class Store:
    """Nodes under `root`. `rebuild` names a stage whose nodes count only if published after `since` (Unix time)."""

    def __init__(self, root: Path, rebuild: str | None = None, since: float = 0.0):
        self.root, self.rebuild, self.since = root, rebuild, since

    def folder(self, node: Node) -> Path:
        return self.root / node.stage / node.fingerprint

    def partial(self, node: Node) -> Path:
        return self.root / node.stage / f"{node.fingerprint}.partial"

    def find(self, node: Node, seen: dict[str, Manifest | None] | None = None) -> Manifest | None:
        """The manifest of a published node that is whole and was made from what its inputs hold now, or None."""
        seen = {} if seen is None else seen  # a node is reached by many ways: look at it once
        if node.fingerprint not in seen:
            seen[node.fingerprint] = self._find(node, seen)
        return seen[node.fingerprint]

    def _find(self, node: Node, seen: dict[str, Manifest | None]) -> Manifest | None:
        manifest = read_manifest(self.folder(node))
        if manifest is None or (node.stage == self.rebuild and manifest["ended"] < self.since):
            return None
        if torn := damaged(self.folder(node), manifest):
            log.warning("warning: %s is damaged (%s): it will be built again.", self.folder(node), torn)
            return None
        for role, given in node.inputs.items():
            if not self.folder(given).exists():
                continue  # removed since; the node itself still stands for it
            found = self.find(given, seen)
            if found is None or found["digest"] != manifest["inputs"][role]["digest"]:
                return None
        return manifest

    def missing(self, targets: list[Node]) -> set[Node]:
        """The nodes that have to be built for the targets. With `rebuild`, all that they descend from: whether a node
        is then kept depends on what its inputs turn out to hold."""
        if self.rebuild:
            return {node for target in targets for node in target.lineage}
        found: set[Node] = set()
        waiting = list(targets)
        while waiting:
            node = waiting.pop()
            if node not in found and not self.find(node):
                found.add(node)
                waiting += node.inputs.values()
        return found

    def state(self, node: Node) -> str:
        if self.find(node):
            return "cached"
        return "resumable" if self.partial(node).exists() else "to build"

    def lock_file(self, stage: str, fingerprint: str) -> Path:
        return self.root / "cache" / "locks" / f"{stage}-{fingerprint}"

    def is_locked(self, stage: str, fingerprint: str) -> bool:
        """Whether a process, or a child that outlived it, is building this node."""
        path = self.lock_file(stage, fingerprint)
        if not path.exists():
            return False
        descriptor = os.open(path, os.O_RDWR)
        try:
            return not filelock.lock_descriptor(descriptor, blocking=False)
        finally:
            os.close(descriptor)

    @contextmanager
    def lock(self, stage: str, name: str) -> Iterator[None]:
        """Hold a lock of the kernel's, after whoever has it now. A node's is under its stage and fingerprint."""
        lock_file = self.lock_file(stage, name)
        try:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.root}: {error.strerror}. Set outputs=FOLDER to another."
            ) from error
        try:
            os.set_inheritable(descriptor, True)  # a child that outlives us keeps the node locked
            if not filelock.lock_descriptor(descriptor, blocking=False):
                holder = os.pread(descriptor, 1000, 0).decode() or "another process"
                log.info("%s %s is being built by %s: waiting.", stage, name, holder)
                filelock.lock_descriptor(descriptor)
            holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def claim(self, node: Node) -> Iterator[Path | None]:
        """Hold the node's lock and yield its partial folder, or None where another process has published it."""
        with self.lock(node.stage, node.fingerprint):
            if (self.partial(node) / "manifest.json").exists():
                self._rename(node)  # complete but for the last step
            yield None if self.find(node) else self._begin(node)

    def _begin(self, node: Node) -> Path:
        """The partial folder, with what an earlier attempt left if its inputs held the same."""
        partial, digests = self.partial(node), self.digests(node)
        begun = partial / SCRATCH / "inputs.json"
        if not begun.exists() or json.loads(begun.read_text()) != digests:
            shutil.rmtree(partial, ignore_errors=True)
            begun.parent.mkdir(parents=True)
            draft = begun.with_suffix(".draft")
            draft.write_text(json.dumps(digests))
            draft.replace(begun)
        return partial

    def digests(self, node: Node) -> dict[str, str]:
        """What a node's inputs hold now, by role."""
        found = {role: read_manifest(self.folder(given)) for role, given in node.inputs.items()}
        if gone := [role for role, manifest in found.items() if manifest is None]:
            raise UserError(f"{node}: its input {node.inputs[gone[0]]} was removed meanwhile. Run the command again.")
        return {role: manifest["digest"] for role, manifest in found.items() if manifest}

    def publish(self, node: Node, record: Manifest) -> Manifest:
        """Write the manifest, make everything durable, and rename the partial folder into place. Needs the lock.

        What lies under `scratch/` (checkpoints, shards) serves a resume only and is not published.

        Raises:
            UserError: where an input no longer holds what it did when the stage began.
        """
        given = json.loads((self.partial(node) / SCRATCH / "inputs.json").read_text())
        if self.digests(node) != given:
            raise UserError(f"{node}: an input was built again while this ran. Run the command again.")
        partial = self.partial(node)
        paths = [p for p in sorted(partial.rglob("*")) if p.relative_to(partial).parts[0] != SCRATCH]
        files = {str(p.relative_to(partial)): p for p in paths if p.is_file()}
        entries = {name: {"bytes": p.stat().st_size, "sha256": file_digest(p)} for name, p in files.items()}
        products = sorted((name, e["sha256"]) for name, e in entries.items() if name != CURVES)
        manifest = {
            "stage": node.stage,
            "fingerprint": node.fingerprint,
            "version": node.version,
            "roots": {n.stage: n.fingerprint for n in node.lineage if n.stage in ("base", "data")},
            "config": asdict(node.config),
            "settings": node.settings,
            "inputs": {
                role: {"stage": n.stage, "fingerprint": n.fingerprint, "digest": given[role]}
                for role, n in node.inputs.items()
            },
            "digest": hashlib.sha256(json.dumps(products).encode()).hexdigest(),
            **record,
            "files": entries,
        }
        for path in [*paths, partial]:
            sync(path)
        draft = partial / SCRATCH / "manifest.json"
        draft.write_text(json.dumps(manifest, indent=1))
        sync(draft)
        os.replace(draft, partial / "manifest.json")  # from here on the folder is complete
        sync(partial)
        self._rename(node)
        return manifest

    def _rename(self, node: Node) -> None:
        partial, folder = self.partial(node), self.folder(node)
        shutil.rmtree(partial / SCRATCH, ignore_errors=True)
        replaced = folder.with_suffix(".replaced")
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(folder, replaced)
        os.rename(partial, folder)
        sync(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    def link_latest(self, targets: list[Node]) -> None:
        """Point `latest/` at the targets and all that they descend from."""
        for node in (node for target in targets for node in target.lineage):
            if self.folder(node).exists():
                self._link(node)

    def _link(self, node: Node) -> None:
        latest = self.root / "latest" / node.stage
        latest.parent.mkdir(parents=True, exist_ok=True)
        whole.link(latest, Path("..") / node.stage / node.fingerprint)

    def manifests(self, stage: str = "*") -> list[tuple[Path, Manifest]]:
        """Every published node of a stage, oldest first."""
        found = [(p.parent, json.loads(p.read_text())) for p in self.root.glob(f"{stage}/*/manifest.json")]
        found = [(folder, m) for folder, m in found if folder.name == m["fingerprint"]]
        return sorted(found, key=lambda item: item[1]["ended"])


def read_manifest(folder: Path) -> Manifest | None:
    path = folder / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else None


def damaged(folder: Path, manifest: Manifest) -> str:
    """What is wrong with a published folder, by the sizes its manifest gives; '' where nothing is."""
    for name, entry in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != entry["bytes"]:
            return f"{name}: {'missing' if size is None else f'{size} bytes'}, {entry['bytes']} in the manifest"
    return ""


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
