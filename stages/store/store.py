"""The store of results: one folder per node, which is published complete or not at all.

`outputs/STAGE/FINGERPRINT/` holds a node, and `FINGERPRINT.partial/` an unfinished one. `outputs/latest/STAGE` links
to the node used last. A process builds a node under a lock of the kernel, which a kill releases. Children that inherit
the lock's descriptor keep it. The next process resumes from the partial folder."""

import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from stages.config.errors import UserError
from stages.config.stage_table import Target
from stages.store import locks, safe_files, sealed_json
from stages.store.allowance import Allowance
from stages.store.digests import Signature, digests, signature
from stages.store.manifest import (
    WEIGHTS,
    Manifest,
    check_files,
    digest_of,
    manifest_of,
    read_manifest,
)
from stages.store.mirror import Mirror
from stages.store.node import Node, in_build_order, nearest_by_stage, published_node
from stages.store.sealed_json import (
    NODE,
    Damaged,
    file_digests,
    read_note,
    remove,
    require_keys,
    sync,
    write_note,
)
from stages.store.workspace import SCRATCH

log = logging.getLogger(__name__)

# folders of a store, beside those of its stages
FOLDERS_OF_STORE = ("cache", "latest", "runs", "multirun", "pages")
# in the scratch folder: the digests of the inputs when the node's first attempt started
INPUTS = "inputs.json"


class Store:
    """The nodes under `root`. For the stage `rebuild`, only nodes that this command published count. `command` is the
    command's random id, which all its processes share. `mirror` is the copy that machines share."""

    def __init__(
        self,
        root: Path,
        rebuild: str | None = None,
        command: str | None = None,
        mirror: Mirror | None = None,
    ):
        self.root = root
        self.rebuild = rebuild
        self.command = command or uuid.uuid4().hex
        self.mirror = mirror
        self._hashed = dict[Path, Signature]()  # files that this command has hashed or written

    @property
    def is_writable(self) -> bool:
        """True if this user can write to the store, or can create it."""
        return not self.root.exists() or os.access(self.root, os.W_OK)

    @property
    def digest_cache(self) -> Path:
        """The file with the digests of files that were hashed before."""
        return self.root / "cache" / "digests.json"

    def folder(self, node: Node) -> Path:
        return self.root / node.stage / node.fingerprint

    def partial(self, node: Node) -> Path:
        return self.root / node.stage / f"{node.fingerprint}.partial"

    def find(self, node: Node, seen: dict[str, Manifest | None] | None = None) -> Manifest | None:
        """Return the manifest of a node that is published, undamaged and made from the present content of its inputs.
        Return None for any other node. `seen` caches the results, since many paths in the graph lead to one node."""
        seen = {} if seen is None else seen
        if node.fingerprint not in seen:
            seen[node.fingerprint] = self._find(node, seen)
        return seen[node.fingerprint]

    def _find(self, node: Node, seen: dict[str, Manifest | None]) -> Manifest | None:
        manifest = read_manifest(self.folder(node))
        if manifest is None or (
            node.stage == self.rebuild and manifest.get("published_by") != self.command
        ):
            return None
        if damage := self.damage_message(self.folder(node), manifest):
            sealed_json.warn_once(
                f"{self.folder(node)} is damaged ({damage}), so it will be built again."
            )
            return None
        return manifest if self._fits(node, manifest, seen) else None

    def _fits(
        self, node: Node, manifest: Manifest, seen: dict[str, Manifest | None] | None = None
    ) -> bool:
        """Return whether a node was made from the inputs that the store has. Removed ones do not count."""
        here = {
            role: self.find(each, seen)
            for role, each in node.inputs.items()
            if self.folder(each).exists()
        }
        made_from = {role: manifest["inputs"].get(role, {}).get("digest", "") for role in here}
        return made_from == {role: record and record["digest"] for role, record in here.items()}

    def missing(self, targets: list[Node], pull: bool = False) -> set[Node]:
        """Return the nodes that a build of the targets has to look at, with all missing ones. With `rebuild`, these
        are all nodes of the lineage: a later node stays valid if the rebuilt one is equal. A node in the mirror is not
        missing; `pull` fetches those that the build needs."""
        if self.rebuild:
            return {node for target in targets for node in target.lineage}
        missing_nodes, fetched, unchecked = set[Node](), set[Node](), [*targets]
        while unchecked:
            node = unchecked.pop()
            if node in missing_nodes or self.find(node):
                continue
            if node in fetched or not self._is_shared(node):
                missing_nodes.add(node)
                unchecked += node.inputs.values()
            elif pull:
                self.fetch(node)
                # it may show that another one was made from other content, so all are checked again
                fetched.add(node)
                missing_nodes, unchecked = set(), [*targets]
        return missing_nodes

    def is_built(self, node: Node) -> bool:
        """Return whether the store or its mirror has a node."""
        return self.find(node) is not None or self._is_shared(node)

    def _is_shared(self, node: Node) -> bool:
        return self.mirror is not None and node.stage != self.rebuild and self.mirror.has(node)

    def _pull(self, node: Node) -> Manifest | None:
        if (
            self.mirror
            and node.stage != self.rebuild
            and self.mirror.pull(node, self.folder(node), self._fits)
        ):
            remove(self.partial(node))
        return self.find(node)

    def fetch(self, node: Node) -> Manifest | None:
        """Return the manifest of a node that is published here, or that the mirror has: then fetch the node first."""
        manifest = self.find(node)
        if manifest is None and self._is_shared(node):
            with self.lock(node.stage, node.fingerprint):
                manifest = self.find(node) or self._pull(node)
        return manifest

    @contextmanager
    def exchange(self, targets: list[Node]) -> Iterator[None]:
        """Exchange nodes and recorded calls around a build. Raise NotSent at its end if something was not sent."""
        if self.mirror is None:
            yield
            return
        with self.mirror.exchange():
            self._share_all(targets)
            yield

    def share_all(self) -> None:
        """Send every published node, and the recorded calls. Raise UserError if something could not be sent."""
        if self.mirror is None:
            return
        seen = dict[str, Node]()
        nodes = [
            published_node(self.root, m["stage"], folder.name, seen)
            for folder, m in self.manifests()
        ]
        with self.mirror.sending(nodes):
            self._share_all(nodes)

    def _share_all(self, targets: list[Node]) -> None:
        """Send the published ones of the targets and their inputs that the mirror lacks."""
        if self.mirror is None:
            return
        unsent = dict[Node, Manifest]()
        seen = dict[str, Manifest | None]()
        for node in in_build_order(targets):
            manifest = self.find(node, seen)
            if manifest and not self.mirror.is_synced(node, manifest):
                unsent[node] = manifest
        with self.mirror.show_progress(unsent) if unsent else nullcontext():
            for node in unsent:
                self.share(node)

    def share(self, node: Node) -> None:
        """Send a published node if the mirror lacks it. If the mirror has other content, fetch that: others use it."""
        manifest = self.find(node)
        if self.mirror is None or manifest is None or self.mirror.is_synced(node, manifest):
            return
        with self.lock(node.stage, node.fingerprint):
            self._share(node, manifest)

    def _share(self, node: Node, manifest: Manifest) -> None:
        if self.mirror and not self.mirror.push(
            node, self.folder(node), manifest, node.stage == self.rebuild
        ):
            log.warning(
                "warning: %s: %s has other content, published first. It replaces ours.",
                node,
                self.mirror.url,
            )
            self._pull(node)

    def damage_message(self, folder: Path, manifest: Manifest) -> str:
        """Return the damage of a published folder in words, or '' for none. Files with another modification time than
        when they were published are hashed. `verify` hashes all files."""
        touched_files = list[Path]()
        for name, entry in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                return f"the file {name} is missing"
            stat = path.stat()
            if stat.st_size != entry["bytes"]:
                return f"{name} has {stat.st_size} bytes, but the manifest says {entry['bytes']}"
            touched_files += [path] if stat.st_mtime_ns != entry.get("mtime_ns") else []
        for path, digest in (
            digests(touched_files, self.digest_cache).items() if touched_files else ()
        ):
            name = str(path.relative_to(folder))
            if digest != manifest["files"][name]["sha256"]:
                return f"the content of {name} has changed since it was published"
        return ""

    def verify(self, *folders: Path, weights: bool = True) -> None:
        """Hash the files of published nodes, each once per command, and compare them with their manifests. A bit that
        flips on a disk changes neither size nor time of a file. `weights=False` leaves weights out.
        Raise Damaged for the first file with other content, with the command that builds its node again."""
        for folder in folders:
            manifest = manifest_of(folder)
            names = [name for name in manifest["files"] if weights or not name.endswith(WEIGHTS)]
            signatures = {
                folder / name: signature(folder / name)
                for name in names
                if (folder / name).is_file()
            }
            unhashed = [
                n for n in names if self._hashed.get(folder / n, "") != signatures.get(folder / n)
            ]
            for name, problem in check_files(folder, manifest, unhashed):
                raise Damaged(folder / name, problem)
            self._hashed |= signatures

    def state(self, node: Node) -> str:
        return (
            "cached"
            if self.is_built(node)
            else "resumable"
            if self.partial(node).exists()
            else "to build"
        )

    def lock_file(self, stage: str, fingerprint: str) -> Path:
        return self.root / "cache" / "locks" / f"{stage}-{fingerprint}"

    def is_locked(self, stage: str, fingerprint: str) -> bool:
        """Return whether a process, or a child that survived its parent, is building this node."""
        return locks.is_held(self.lock_file(stage, fingerprint))

    @contextmanager
    def lock(self, stage: str, name: str, allowance: Allowance | None = None) -> Iterator[None]:
        """Wait for a lock and hold it. A node's lock is named by its stage and fingerprint."""
        with locks.hold_lock(self.lock_file(stage, name), f"{stage} {name}", allowance=allowance):
            yield

    @contextmanager
    def claim(self, node: Node, allowance: Allowance | None = None) -> Iterator[Path | None]:
        """Hold the node's lock and yield its partial folder, or None if another process has published the node.
        Raise LimitReached if the time of `allowance` is up while another process has the lock."""
        with self.lock(node.stage, node.fingerprint, allowance):
            if read_manifest(self.partial(node)):
                self._rename(node)  # a kill came just before the last step
            with (
                self.mirror.lease(node, allowance)
                if self.mirror and not self.find(node)
                else nullcontext()
            ):
                yield None if self.find(node) or self._pull(node) else self._begin(node)

    def _begin(self, node: Node) -> Path:
        """Return the partial folder. Files of an earlier attempt stay in it if the inputs have not changed since."""
        partial, digests_by_role = self.partial(node), self.read_input_digests(node)
        digests_file = partial / SCRATCH / INPUTS
        leads_elsewhere = partial.is_symlink() or sealed_json.first_link(partial) is not None
        if leads_elsewhere or read_note(digests_file, require_keys()) != digests_by_role:
            if any(partial.glob(f"{SCRATCH}/*")):
                why = (
                    "a link in it leads elsewhere" if leads_elsewhere else "its inputs have changed"
                )
                log.warning("warning: %s starts again, since %s: see %s.", node, why, digests_file)
            remove(partial)
            digests_file.parent.mkdir(parents=True)
            write_note(digests_file, digests_by_role)
        remove(partial / "manifest.json")  # an unreadable manifest of a complete folder
        return partial

    def read_input_digests(self, node: Node) -> dict[str, str]:
        """Return the digests of a node's inputs by role. Raise UserError if an input has been removed meanwhile."""
        manifests_by_role = {
            role: read_manifest(self.folder(input_node)) for role, input_node in node.inputs.items()
        }
        if removed_roles := [
            role for role, manifest in manifests_by_role.items() if manifest is None
        ]:
            removed = node.inputs[removed_roles[0]]
            raise UserError(
                f"{node}: its input {removed} was removed while this ran. Type the same command again."
            )
        return {
            role: manifest["digest"] for role, manifest in manifests_by_role.items() if manifest
        }

    def publish(self, node: Node, record: Manifest) -> Manifest:
        """Write the manifest, sync all files to the disk, and rename the partial folder. The caller holds the lock.
        Files in `scratch/` (checkpoints, shards) are only needed for a resume, and are not published.
        Raise UserError if the content of an input has changed since the stage started."""
        digests_by_role = self.read_input_digests(node)
        if read_note(self.partial(node) / SCRATCH / INPUTS, require_keys()) != digests_by_role:
            raise UserError(
                f"{node}: another command rebuilt an input while this ran. Type the same command again."
            )
        partial = self.partial(node)
        paths = [
            p for p in sorted(partial.rglob("*")) if p.relative_to(partial).parts[0] != SCRATCH
        ]
        files = {str(p.relative_to(partial)): p for p in paths if p.is_file()}
        # safetensors writes files that only their owner can read
        readers = partial.stat().st_mode & 0o444
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
            **({"edited": asdict(node.edited)} if node.edited else {}),
            "inputs": {
                role: {
                    "stage": n.stage,
                    "fingerprint": n.fingerprint,
                    "digest": digests_by_role[role],
                }
                for role, n in node.inputs.items()
            },
            "digest": digest_of(entries),
            "published_by": self.command,
            **({"remote": self.mirror.url} if self.mirror else {}),
            **record,
            "files": entries,
        }
        for path in [*paths, partial]:
            sync(path)
        draft = partial / SCRATCH / "manifest.json"
        draft.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        sync(draft)
        os.replace(draft, partial / "manifest.json")  # from here on, the folder is complete
        sync(partial)
        self._rename(node)
        self._hashed |= {self.folder(node) / name: times for name, times in signatures.items()}
        self._share(node, manifest)
        return manifest

    def _rename(self, node: Node) -> None:
        remove(self.partial(node) / SCRATCH)
        sealed_json.replace_folder(self.partial(node), self.folder(node))

    def link_latest(self, targets: list[Node]) -> None:
        """Let the links in `latest/` point at the nodes that targets are made of. A read-only store stays as it is."""
        if not self.is_writable:
            return
        for node in nearest_by_stage(targets).values():
            if self.folder(node).exists():
                latest = self.root / "latest" / node.stage
                latest.parent.mkdir(parents=True, exist_ok=True)
                safe_files.link(latest, Path("..") / node.stage / node.fingerprint)

    def manifests(self, stage: str = "*") -> list[tuple[Path, Manifest]]:
        """Return folder and manifest of every readable published node of a stage, oldest first."""
        manifests = [
            (folder, m) for folder in self.published_folders(stage) if (m := read_manifest(folder))
        ]
        manifests = [(folder, m) for folder, m in manifests if folder.name == m["fingerprint"]]
        return sorted(manifests, key=lambda item: item[1]["ended"])

    def published_folders(self, stage: str = "*") -> list[Path]:
        """Return the folders of all published nodes of a stage."""
        return [
            folder for folder in self.node_folders(stage) if (folder / "manifest.json").exists()
        ]

    def node_folders(self, stage: str = "*") -> list[Path]:
        """Return the folders of a stage that are named as nodes, also those without a manifest."""
        return [
            folder
            for folder in self.root.glob(f"{stage}/*/")
            if folder.parent.name in [*Target] and NODE.fullmatch(folder.name)
        ]


def require_store(store: Store) -> None:
    """Raise UserError if the folder has folders of others and no node, as its name may be mistyped. If the store is
    empty, say so."""
    if store.node_folders() or (store.root / "cache" / "locks").is_dir():
        return
    names = {path.name for path in store.root.glob("[!.]*/")}
    if not names <= {*Target, *FOLDERS_OF_STORE}:
        raise UserError(
            f"outputs={store.root} is not an artifact store: no node was built there. Correct the path."
        )
    log.info("outputs=%s: nothing was built there yet.", store.root)
