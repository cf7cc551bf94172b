"""The shared copy of a store in `store.remote`, from which other machines fetch nodes instead of building them.

`files/SHA256` holds each content once, and `nodes/STAGE/FINGERPRINT.json` the manifest, which is written last and only
if it does not exist. A kill at any point leaves files without a manifest, and the next push reuses them."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.store import lease, safe_files, shared_calls
from stages.store.allowance import Allowance
from stages.store.manifest import Manifest, digest_of, validate_manifest
from stages.store.node import Node
from stages.store.remote import Remote, RemoteError, open_remote, validate_url
from stages.store.sealed_json import WRONG_SHAPE, file_digest, replace_folder, sync, warn_once
from stages.store.workspace import SCRATCH, Progress

log = logging.getLogger(__name__)

SHA256 = re.compile(r"[0-9a-f]{64}")
NODE_NAME = re.compile(r"nodes/([a-z]+)/([0-9a-f]{12})\.json")
PARALLEL = 8  # requests at a time
LOOKED_UP = 1 << 20  # bytes: a smaller file is sent without a look-up
KEPT_SECONDS = 7 * 86_400.0  # a younger node may belong to a run that is not finished


class Spoiled(Exception):
    """Raised for content in the remote that is not what its name says."""


class Mirror:
    """The copy of the store `root` at `url`. It is opened at its first use, so that a plan for nothing costs nothing.
    Methods raise RemoteError if the remote cannot be used."""

    def __init__(self, url: str, root: Path):
        validate_url(url)
        self.url, self.calls = url, root / "cache" / "calls"
        self.copies = root / "cache" / "remote" / hashlib.sha256(url.encode()).hexdigest()[:12]
        self.spoiled, self.unsent = set[str](), list[str]()  # names of nodes

    @cached_property
    def remote(self) -> Remote:
        return open_remote(self.url)

    @cached_property
    def listed(self) -> set[str]:
        """The names of the nodes in the remote when the command began, and of those that it pushed."""
        return {*self.remote.list("nodes")}

    def has(self, node: Node) -> bool:
        """Return whether the remote had the node when this command began."""
        return name_of(node) in self.listed - self.spoiled

    def lease(self, node: Node, allowance: Allowance | None = None) -> AbstractContextManager[None]:
        """Hold the lease of a node, or wait until another machine has published the node."""
        name = f"{node.stage}-{node.fingerprint}"
        return lease.hold_lease(
            self.remote, name, lambda: self.remote.size(name_of(node)) is not None, allowance
        )

    def is_synced(self, node: Node, manifest: Manifest) -> bool:
        """Return whether the remote holds this content of a node, as this store has seen."""
        name, mark = name_of(node), self.copies / name_of(node)
        return (
            name in self.listed
            and mark.exists()
            and mark.read_text(encoding="utf-8") == manifest["digest"]
        )

    def _mark_synced(self, node: Node, manifest: Manifest) -> None:
        mark = self.copies / name_of(node)
        mark.parent.mkdir(parents=True, exist_ok=True)
        safe_files.write(mark, manifest["digest"])
        self.listed.add(name_of(node))

    def pull(self, node: Node, folder: Path, fits: Callable[[Node, Manifest], bool]) -> bool:
        """Fetch a node that `fits` into its folder, and return whether the remote has it. Files of an interrupted pull
        are reused. If the content is not what its digest says, warn and return False. The caller holds its lock."""
        try:
            if (current := self.remote.get(name_of(node))) is None:
                return False
            manifest = manifest_of_node(node, current[0])
            if not fits(node, manifest):
                return False  # made from other inputs than this store has
            pulled = folder.with_suffix(".pulled")
            (pulled / SCRATCH).mkdir(parents=True, exist_ok=True)
            self._each(
                f"pull {node}",
                by_digest(manifest).items(),
                lambda i: self._pull_file(pulled, manifest, *i),
            )
        except Spoiled as error:
            self.spoiled.add(name_of(node))
            warn_once(
                f"store.remote={self.url}: {node} is not used, since {error}. It is built here."
            )
            return False
        shutil.rmtree(pulled / SCRATCH)
        for path in pulled.rglob("*"):  # an interrupted pull of other content may have left some
            if path.is_file() and path.relative_to(pulled).as_posix() not in manifest["files"]:
                path.unlink()
        safe_files.write(pulled / "manifest.json", current[0])
        for path in (pulled / "manifest.json", pulled):
            sync(path)
        replace_folder(pulled, folder)
        self._mark_synced(node, manifest)
        log.info("%s: pulled from %s", node, self.url)
        return True

    def _pull_file(self, folder: Path, manifest: Manifest, sha256: str, names: list[str]) -> None:
        """Fetch one content, and write it under all its names in the node."""
        size, draft = manifest["files"][names[0]]["bytes"], folder / SCRATCH / sha256
        paths = [folder / name for name in names]
        finished = next(
            (path for path in paths if path.is_file() and file_digest(path) == sha256), None
        )
        if finished is None:
            try:
                self.remote.download(f"files/{sha256}", draft, size)
            except (FileNotFoundError, RemoteError) as error:
                if self.remote.size(f"files/{sha256}") == size:
                    raise
                raise Spoiled(f"its file {names[0]} is missing or truncated") from error
            if file_digest(draft) != sha256:
                draft.unlink()
                raise Spoiled(f"the content of its file {names[0]} has another digest")
            finished = draft
        for name, path in zip(names, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path != finished:
                shutil.copyfile(finished, path) if path != paths[
                    -1
                ] or finished != draft else draft.replace(path)
            sync(path)
            if isinstance(mtime := manifest["files"][name].get("mtime_ns"), int):
                os.utime(path, ns=(mtime, mtime))  # so that the file is not hashed again

    def push(self, node: Node, folder: Path, manifest: Manifest, replace: bool) -> bool:
        """Send a published node. Return False, without sending it, if another machine has published the node from the
        same inputs with other content; `replace` sends it all the same. A failure is only a warning, since the next
        command pushes what the remote lacks; `raise_unsent` raises it."""
        try:
            return self._push(node, folder, manifest, replace)
        except RemoteError as error:
            self.unsent.append(str(node))
            log.warning("warning: %s is published in %s, but not sent. %s", node, folder, error)
            return True

    def _push(self, node: Node, folder: Path, manifest: Manifest, replace: bool) -> bool:
        name, other = name_of(node), None
        current = self.remote.get(name)
        with suppress(Spoiled):
            other = current and manifest_of_node(node, current[0])
        if other and name not in self.spoiled:
            if other["digest"] == manifest["digest"]:
                self._mark_synced(node, manifest)
                return True
            if other["inputs"] == manifest["inputs"] and not replace:
                return False
        paths = [(folder / names[0], sha256) for sha256, names in by_digest(manifest).items()]
        self._each(f"push {node}", paths, lambda item: self._push_file(item[0], item[1], name))
        if not self.remote.put(
            name, (folder / "manifest.json").read_bytes(), current and current[1]
        ):
            # another machine has just published the node
            return self._push(node, folder, manifest, replace)
        self.spoiled.discard(name)
        self._mark_synced(node, manifest)
        return True

    def _push_file(self, path: Path, sha256: str, name: str) -> None:
        size = path.stat().st_size
        looked_up = size > LOOKED_UP and name not in self.spoiled
        if not looked_up or self.remote.size(f"files/{sha256}") != size:
            self.remote.upload(f"files/{sha256}", path)

    def _each(self, title: str, items: Iterable[Any], work: Callable[[Any], None]) -> None:
        """Do the work for each item in threads, with a progress bar."""
        items = list(items)
        with (
            Progress(len(items), title, "file") as progress,
            ThreadPoolExecutor(PARALLEL) as threads,
        ):
            for _ in threads.map(work, items):
                progress.update()

    def pull_calls(self) -> None:
        """Fetch the calls and judgements that other machines have recorded."""
        shared_calls.pull_calls(self.remote, self.copies, self.calls)

    def push_calls(self) -> None:
        """Send the calls and judgements that this machine has recorded, or warn if that fails."""
        try:
            shared_calls.push_calls(self.remote, self.copies, self.calls)
        except RemoteError as error:
            self.unsent.append("calls")
            log.warning("warning: recorded calls are not sent. %s", error)

    def raise_unsent(self) -> None:
        """Raise UserError if something could not be sent."""
        if self.unsent:
            names = ", ".join(dict.fromkeys(self.unsent))
            raise UserError(
                f"store.remote={self.url}: not sent: {names}. The same command again sends it."
            )

    def collect(self, needed: set[tuple[str, str]], remove: bool) -> None:
        """List or remove the nodes of the remote that neither `needed` nor a report in the remote reaches, and files
        that no remaining manifest names. Everything younger than a week stays, since its run may not be finished."""
        ages = self.remote.list("nodes")
        manifests = dict[tuple[str, str], Manifest]()
        reached = set(needed)
        for name in sorted(ages):
            if (match := NODE_NAME.fullmatch(name)) and (current := self.remote.get(name)):
                try:
                    manifests[match[1], match[2]] = parse_manifest(current[0])
                except WRONG_SHAPE as bad:
                    raise UserError(
                        f"store.remote={self.url}: {name} is not a manifest ({bad}). Remove it."
                    ) from bad
        young = {key for key in manifests if ages[f"nodes/{key[0]}/{key[1]}.json"] < KEPT_SECONDS}
        unchecked = [*needed, *young, *(key for key in manifests if key[0] == "report")]
        while unchecked:
            key = unchecked.pop()
            reached.add(key)
            inputs = manifests[key]["inputs"].values() if key in manifests else []
            unchecked += {(each["stage"], each["fingerprint"]) for each in inputs} - reached
        unneeded = [
            f"nodes/{stage}/{name}.json"
            for stage, name in manifests
            if (stage, name) not in reached
        ]
        named = {
            f"files/{sha256}"
            for key in manifests.keys() & reached
            for sha256 in by_digest(manifests[key])
        }
        files = [
            name
            for name, age in self.remote.list("files").items()
            if age > KEPT_SECONDS and name not in named
        ]
        for name in unneeded:
            log.info("%s/%s%s", self.url, name, "  removed" if remove else "")
        if remove:
            # before the files, so that no manifest names a removed file
            self.remote.delete(unneeded)
            self.remote.delete(files)
        log.info("%s: %d nodes and %d files are not needed.", self.url, len(unneeded), len(files))


def name_of(node: Node) -> str:
    return f"nodes/{node.stage}/{node.fingerprint}.json"


def manifest_of_node(node: Node, content: bytes) -> Manifest:
    """Return the manifest in an object. Raise Spoiled if it is not a manifest of this node."""
    try:
        manifest = parse_manifest(content)
    except WRONG_SHAPE as error:
        raise Spoiled(f"the manifest is unusable: {error}") from error
    if (manifest["stage"], manifest["fingerprint"]) != (node.stage, node.fingerprint):
        raise Spoiled(
            f"the manifest belongs to {manifest['stage']} {manifest['fingerprint']}"[:100]
        )
    return manifest


def parse_manifest(content: bytes) -> Manifest:
    """Return the manifest in an object. Raise ValueError, or another error of WRONG_SHAPE, if it is unusable."""
    manifest = validate_manifest(json.loads(content))
    if any(
        not SHA256.fullmatch(entry["sha256"]) or entry["bytes"] < 0
        for entry in manifest["files"].values()
    ):
        raise ValueError("files: an entry has no SHA-256")
    if digest_of(manifest["files"]) != manifest["digest"]:
        raise ValueError("its digests do not fit each other")
    return manifest


def by_digest(manifest: Manifest) -> dict[str, list[str]]:
    """Return the names of a node's files by digest."""
    names = dict[str, list[str]]()
    for name, entry in manifest["files"].items():
        names.setdefault(entry["sha256"], []).append(name)
    return names
