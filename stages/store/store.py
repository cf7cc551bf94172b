"""The artifact store: one folder per node, named by what was computed, published whole or not at all.

`outputs/<stage>/<fingerprint>/` holds a node, `….partial/` one in the making, `outputs/latest/<stage>` links to the
last one used. A node is built under a lock of the kernel's: a killed builder frees it, children that inherit its
descriptor keep it, and whoever takes over resumes what the partial folder holds.
"""

import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from stages.config.errors import UserError
from stages.config.schema import Target
from stages.store import locks, safe_files
from stages.store.digests import Signature, digests, signature
from stages.store.manifest import WEIGHTS, Manifest, check_files, digest_of, manifest_of, read_manifest
from stages.store.node import Node
from stages.store.sealed_json import (
    NODE,
    Damaged,
    file_digests,
    read_note,
    remove,
    replace_folder,
    require_keys,
    sync,
    warn_once,
    write_note,
)
from stages.store.workspace import SCRATCH

log = logging.getLogger(__name__)

INPUTS = "inputs.json"  # in scratch: what the inputs held when a node was begun


class Store:
    """Nodes under `root`. `rebuild` names a stage whose nodes count only if `command` published them: a word that all
    processes of one command know, and no clock."""

    def __init__(self, root: Path, rebuild: str | None = None, command: str | None = None):
        self.root, self.rebuild, self.command = root, rebuild, command or uuid.uuid4().hex
        self._hashed = dict[Path, Signature]()  # files that this command hashed, or wrote itself

    @property
    def is_writable(self) -> bool:
        """True where this user may write to the store, or make it."""
        return not self.root.exists() or os.access(self.root, os.W_OK)

    @property
    def digest_cache(self) -> Path:
        """Where the digests of files are kept that were hashed before."""
        return self.root / "cache" / "digests.json"

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
        if manifest is None or (node.stage == self.rebuild and manifest.get("published_by") != self.command):
            return None
        if damage := self.damage_message(self.folder(node), manifest):
            warn_once(f"{self.folder(node)} is damaged ({damage}): it will be built again.")
            return None
        for role, input_node in node.inputs.items():
            if not self.folder(input_node).exists():
                continue  # removed since; the node itself still stands for it
            input_manifest = self.find(input_node, seen)
            if input_manifest is None or input_manifest["digest"] != manifest["inputs"].get(role, {}).get("digest"):
                return None
        return manifest

    def missing(self, targets: list[Node]) -> set[Node]:
        """The nodes that have to be built for the targets. With `rebuild`, all that they descend from: whether a node
        is then kept depends on what its inputs turn out to hold."""
        if self.rebuild:
            return {node for target in targets for node in target.lineage}
        missing_nodes: set[Node] = set()
        unchecked = list(targets)
        while unchecked:
            node = unchecked.pop()
            if node not in missing_nodes and not self.find(node):
                missing_nodes.add(node)
                unchecked += node.inputs.values()
        return missing_nodes

    def damage_message(self, folder: Path, manifest: Manifest) -> str:
        """What is wrong with a published folder; '' where nothing is. A file is hashed if it is not as old as it was
        published, as in a copy, or after an edit; `verify` hashes all."""
        touched_files = list[Path]()
        for name, entry in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name}: missing"
            stat = path.stat()
            if stat.st_size != entry["bytes"]:
                return f"{name}: {stat.st_size} bytes, {entry['bytes']} in the manifest"
            touched_files += [path] if stat.st_mtime_ns != entry.get("mtime_ns") else []
        for path, digest in digests(touched_files, self.digest_cache).items() if touched_files else ():
            name = str(path.relative_to(folder))
            if digest != manifest["files"][name]["sha256"]:
                return f"{name} is not what was published"
        return ""

    def verify(self, *folders: Path, weights: bool = True) -> None:
        """Hash the files of published nodes, each once in a command: bits that flip on a disk change neither size nor
        time. Without `weights`, those are left out.

        Raises:
            Damaged: naming the first file that is not what was published, and what builds it again.
        """
        for folder in folders:
            manifest = manifest_of(folder)
            names = [name for name in manifest["files"] if weights or not name.endswith(WEIGHTS)]
            signatures = {folder / name: signature(folder / name) for name in names if (folder / name).is_file()}
            unhashed = [
                name
                for name in names
                if (file := folder / name) not in signatures or self._hashed.get(file) != signatures[file]
            ]
            for name, problem in check_files(folder, manifest, unhashed):
                if problem:
                    raise Damaged(folder / name, problem)
            self._hashed |= signatures

    def state(self, node: Node) -> str:
        if self.find(node):
            return "cached"
        return "resumable" if self.partial(node).exists() else "to build"

    def lock_file(self, stage: str, fingerprint: str) -> Path:
        return self.root / "cache" / "locks" / f"{stage}-{fingerprint}"

    def is_locked(self, stage: str, fingerprint: str) -> bool:
        """Whether a process, or a child that outlived it, is building this node."""
        return locks.is_held(self.lock_file(stage, fingerprint))

    @contextmanager
    def lock(self, stage: str, name: str) -> Iterator[None]:
        """Hold a lock of the kernel's, after whoever has it now. A node's is under its stage and fingerprint."""
        with locks.hold_lock(locks.open_lock(self.lock_file(stage, name)), f"{stage} {name}"):
            yield

    @contextmanager
    def claim(self, node: Node) -> Iterator[Path | None]:
        """Hold the node's lock and yield its partial folder, or None where another process has published it."""
        with self.lock(node.stage, node.fingerprint):
            if read_manifest(self.partial(node)):
                self._rename(node)  # complete but for the last step
            yield None if self.find(node) else self._begin(node)

    def _begin(self, node: Node) -> Path:
        """The partial folder, with what an earlier attempt left if its inputs held the same."""
        partial, digests_by_role = self.partial(node), self.read_input_digests(node)
        digests_file = partial / SCRATCH / INPUTS
        if read_note(digests_file, require_keys()) != digests_by_role:
            if any(partial.glob(f"{SCRATCH}/*")):
                log.warning(
                    "warning: %s begins anew: by %s, what was begun came from other inputs.", node, digests_file
                )
            remove(partial)
            digests_file.parent.mkdir(parents=True)
            write_note(digests_file, digests_by_role)
        remove(partial / "manifest.json")  # of a folder that was complete, but cannot be read
        return partial

    def read_input_digests(self, node: Node) -> dict[str, str]:
        """What a node's inputs hold now, by role."""
        manifests_by_role = {role: read_manifest(self.folder(input_node)) for role, input_node in node.inputs.items()}
        if removed_roles := [role for role, manifest in manifests_by_role.items() if manifest is None]:
            raise UserError(
                f"{node}: its input {node.inputs[removed_roles[0]]} was removed meanwhile. Run the command again."
            )
        return {role: manifest["digest"] for role, manifest in manifests_by_role.items() if manifest}

    def publish(self, node: Node, record: Manifest) -> Manifest:
        """Write the manifest, make everything durable, and rename the partial folder into place. Needs the lock.

        What lies under `scratch/` (checkpoints, shards) serves a resume only and is not published.

        Raises:
            UserError: where an input no longer holds what it did when the stage began.
        """
        digests_by_role = self.read_input_digests(node)
        if read_note(self.partial(node) / SCRATCH / INPUTS, require_keys()) != digests_by_role:
            raise UserError(f"{node}: an input was built again while this ran. Run the command again.")
        partial = self.partial(node)
        paths = [p for p in sorted(partial.rglob("*")) if p.relative_to(partial).parts[0] != SCRATCH]
        files = {str(p.relative_to(partial)): p for p in paths if p.is_file()}
        readers = partial.stat().st_mode & 0o444  # safetensors lets nobody but this user read weights
        for path in files.values():
            path.chmod(path.stat().st_mode | readers)
        signatures = {name: signature(path) for name, path in files.items()}
        entries = {
            name: {"bytes": signatures[name][0], "mtime_ns": signatures[name][1], "sha256": digest}
            for name, digest in zip(files, file_digests(files.values()), strict=True)
        }
        manifest = {
            "stage": node.stage,
            "fingerprint": node.fingerprint,
            "version": node.version,
            "roots": node.roots,
            "config": asdict(node.config),
            "settings": node.settings,
            "inputs": {
                role: {"stage": n.stage, "fingerprint": n.fingerprint, "digest": digests_by_role[role]}
                for role, n in node.inputs.items()
            },
            "digest": digest_of(entries),
            "published_by": self.command,
            **record,
            "files": entries,
        }
        for path in [*paths, partial]:
            sync(path)
        draft = partial / SCRATCH / "manifest.json"
        draft.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        sync(draft)
        os.replace(draft, partial / "manifest.json")  # from here on the folder is complete
        sync(partial)
        self._rename(node)
        self._hashed |= {self.folder(node) / name: each for name, each in signatures.items()}
        return manifest

    def _rename(self, node: Node) -> None:
        remove(self.partial(node) / SCRATCH)
        replace_folder(self.partial(node), self.folder(node))

    def link_latest(self, targets: list[Node]) -> None:
        """Point `latest/` at the targets and all that they descend from; not in a store that may only be read."""
        if not self.is_writable:
            return
        for node in (node for target in targets for node in target.lineage):
            if self.folder(node).exists():
                self._link(node)

    def _link(self, node: Node) -> None:
        latest = self.root / "latest" / node.stage
        latest.parent.mkdir(parents=True, exist_ok=True)
        safe_files.link(latest, Path("..") / node.stage / node.fingerprint)

    def manifests(self, stage: str = "*") -> list[tuple[Path, Manifest]]:
        """Every published node of a stage that can be read, oldest first."""
        manifests = [(folder, m) for folder in self.published_folders(stage) if (m := read_manifest(folder))]
        manifests = [(folder, m) for folder, m in manifests if folder.name == m["fingerprint"]]
        return sorted(manifests, key=lambda item: item[1]["ended"])

    def published_folders(self, stage: str = "*") -> list[Path]:
        """The folders that published nodes lie in."""
        folders = [path.parent for path in self.root.glob(f"{stage}/*/manifest.json")]
        return [folder for folder in folders if folder.parent.name in [*Target] and NODE.fullmatch(folder.name)]
