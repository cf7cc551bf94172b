"""The mirror of a store in `store.remote`.

`files/SHA256` holds each content once, and `nodes/STAGE/FINGERPRINT.json` the manifest, which is written last and only
if it does not exist. A kill at any point leaves files without a manifest, and the next push reuses them."""

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Self

from stages.config.errors import UserError
from stages.config.extras import EXTRAS
from stages.config.installation import program
from stages.config.schema import Config
from stages.extras.shared_store import SharedStore, calls, lease
from stages.extras.shared_store.remote import Remote, RemoteError, Report, open_remote, validate_url
from stages.store import safe_files
from stages.store.allowance import Allowance
from stages.store.manifest import Manifest, digest_of, validate_manifest
from stages.store.mirror import Fits, Mirror, NotSent
from stages.store.node import Node
from stages.store.sealed_json import WRONG_SHAPE, file_digest, replace_folder, sync, warn_once
from stages.store.workspace import SCRATCH, Progress

log = logging.getLogger(__name__)

SHA256 = re.compile(r"[0-9a-f]{64}")
NODE_NAME = re.compile(r"nodes/([a-z]+)/([0-9a-f]{12})\.json")
PARALLEL = 8  # requests at a time
LOOKED_UP = 1 << 20  # bytes: a smaller file is sent without a look-up
AWAY_SECONDS = 600.0  # after a failure: before the remote is tried again

# Transfers a content that these files have, and reports its progress. Returns the bytes that were sent or fetched.
Transfer = Callable[[str, list[str], Report], int]


class Spoiled(Exception):
    """Raised for content in the remote that is not what its name says."""


class RemoteMirror(Mirror):
    """The copy of the store `root` at `url`. It is opened at its first use, so that a plan for nothing costs nothing.

    `collect` and `sending` raise RemoteError if the remote cannot be used."""

    def __init__(self, url: str, root: Path):
        validate_url(url)
        self.url, self.root, self.calls = url, root, root / "cache" / "calls"
        self.copies = root / "cache" / "remote" / hashlib.sha256(url.encode()).hexdigest()[:12]
        self.spoiled, self.unsent = set[str](), list[str]()  # names of nodes
        self.sent_nodes = 0
        self.sent_bytes = 0
        self.progress: Progress | None = None  # of several nodes
        self.away_until, self.failure = 0.0, ""

    @classmethod
    def of(cls, cfg: Config) -> Self | None:
        """Return the mirror in `store.remote`, or None."""
        settings: SharedStore = vars(cfg)["store"]
        return cls(settings.remote, Path(cfg.outputs)) if settings.remote else None

    @property
    def remote(self) -> Remote:
        """The opened remote. Raise RemoteError if it cannot be used, or could not in the last ten minutes."""
        if self.is_away:
            raise RemoteError(self.failure)
        return self._opened

    @cached_property
    def _opened(self) -> Remote:
        return open_remote(self.url)

    @property
    def is_away(self) -> bool:
        return time.monotonic() < self.away_until

    @contextmanager
    def going_on_without(self) -> Iterator[None]:
        """End the block if the remote cannot be used, and go on behind it. Warn the first time."""
        try:
            yield
        except RemoteError as error:
            if not self.is_away:
                self.away_until = time.monotonic() + AWAY_SECONDS
                self.failure = str(error)
                log.warning("warning: %s This command goes on without the remote.", error)

    def require_writable(self) -> None:
        """Raise UserError if nothing can be sent to the remote."""
        if self.remote.is_read_only:
            raise UserError(
                f"store.remote={self.url}: cannot be written, so nothing is sent. Check the credentials in the environment."
            )

    @cached_property
    def listed(self) -> set[str]:
        """The names of the nodes in the remote when the command began, and of those that it pushed."""
        with self.going_on_without():
            return {*self.remote.list("nodes")}
        return set()

    def has(self, node: Node) -> bool:
        """Return whether the remote had the node when this command began, or has got it since."""
        return name_of(node) in self.listed - self.spoiled

    @contextmanager
    def lease(self, node: Node, allowance: Allowance | None = None) -> Iterator[None]:
        """Hold the lease of a node, or wait until another machine has published the node."""
        with ExitStack() as held:
            with self.going_on_without():
                remote = self.remote
                if not remote.is_read_only:
                    name = f"{node.stage}-{node.fingerprint}"
                    is_published = partial(has_manifest, remote, node)
                    held.enter_context(lease.hold_lease(remote, name, is_published, allowance))
            yield

    def is_synced(self, node: Node, manifest: Manifest) -> bool:
        """Return whether the remote holds this content of a node, as this store has seen."""
        name, mark = name_of(node), self.copies / name_of(node)
        return (
            (name in self.listed or self.is_away)
            and mark.exists()
            and mark.read_text(encoding="utf-8") == manifest["digest"]
        )

    def _mark_synced(self, node: Node, manifest: Manifest) -> None:
        safe_files.write_in_folder(self.copies / name_of(node), manifest["digest"])
        self.listed.add(name_of(node))

    def pull(self, node: Node, folder: Path, fits: Fits) -> bool:
        """Fetch a node that `fits` into its folder, and return whether the remote has it. Files of an interrupted pull
        are reused. If the content is not what its digest says, warn and return False."""
        with self.going_on_without():
            return self._pull(node, folder, fits)
        return False

    def _pull(self, node: Node, folder: Path, fits: Fits) -> bool:
        try:
            if (current := self.remote.get(name_of(node))) is None:
                return False
            manifest = manifest_of_node(node, current[0])
            if not fits(node, manifest):
                return False  # made from other inputs than this store has
            pulled = folder.with_suffix(".pulled")
            (pulled / SCRATCH).mkdir(parents=True, exist_ok=True)
            self._transfer(f"pull {node}", manifest, partial(self._pull_file, pulled, manifest))
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

    def _pull_file(
        self, folder: Path, manifest: Manifest, sha256: str, names: list[str], report: Report
    ) -> int:
        """Fetch one content, and write it under all its names in the node. Return its size."""
        size, draft = manifest["files"][names[0]]["bytes"], folder / SCRATCH / sha256
        paths = [folder / name for name in names]
        finished = next(
            (path for path in paths if path.is_file() and file_digest(path) == sha256), None
        )
        if finished is None:
            try:
                self.remote.download(f"files/{sha256}", draft, size, report)
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
        report(size)
        return size

    def push(self, node: Node, folder: Path, manifest: Manifest, replace: bool) -> bool:
        """Send a published node. Return False, without sending it, if another machine has published the node from the
        same inputs with other content; `replace` sends it all the same. `raise_unsent` names it if it was not sent."""
        with self.going_on_without():
            return self.remote.is_read_only or self._push(node, folder, manifest, replace)
        self.unsent.append(str(node))
        return True

    def _push(self, node: Node, folder: Path, manifest: Manifest, replace: bool) -> bool:
        name, other = name_of(node), None
        current = self.remote.get(name)
        with suppress(Spoiled):
            other = current and manifest_of_node(node, current[0])
        if other and name not in self.spoiled:
            if other["digest"] == manifest["digest"]:
                if self.progress:
                    self.progress.total -= size_of(manifest)
                self._mark_synced(node, manifest)
                return True
            if other["inputs"] == manifest["inputs"] and not replace:
                return False
        sent = self._transfer(
            f"push {node}", manifest, partial(self._push_file, folder, name not in self.spoiled)
        )
        if not self.remote.put(
            name, (folder / "manifest.json").read_bytes(), current and current[1]
        ):
            # another machine has just published the node
            return self._push(node, folder, manifest, replace)
        self.sent_nodes += 1
        self.sent_bytes += sent
        self.spoiled.discard(name)
        self._mark_synced(node, manifest)
        return True

    def _push_file(
        self, folder: Path, is_intact: bool, sha256: str, names: list[str], report: Report
    ) -> int:
        """Send one content unless the remote has it, and return the bytes that were sent. `is_intact`: the node was not
        found spoiled in the remote."""
        path = folder / names[0]
        size = path.stat().st_size
        looked_up = size > LOOKED_UP and is_intact
        if looked_up and self.remote.size(f"files/{sha256}") == size:
            report(size)
            return 0
        self.remote.upload(f"files/{sha256}", path, report)
        return size

    def _transfer(self, title: str, manifest: Manifest, transfer: Transfer) -> int:
        """Transfer each content of a node in threads, and show the progress. Return the sum of the results."""
        contents = by_digest(manifest)
        transferred = dict.fromkeys(contents, 0)
        with (
            self._open_progress(title, size_of(manifest)) as progress,
            ThreadPoolExecutor(PARALLEL) as threads,
        ):
            before = progress.done
            work = [
                threads.submit(transfer, sha256, names, partial(transferred.__setitem__, sha256))
                for sha256, names in contents.items()
            ]
            waiting = {*work}
            while waiting:
                done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_EXCEPTION)
                progress.update(before + sum(transferred.values()) - progress.done)
                if any(each.exception() for each in done):
                    threads.shutdown(wait=False, cancel_futures=True)
                    break
        return sum(each.result() for each in work if not each.cancelled())

    @contextmanager
    def _open_progress(self, title: str, total: int) -> Iterator[Progress]:
        """Yield the progress of several nodes, or open that of one node."""
        if self.progress:
            yield self.progress
            return
        with Progress(total, title, "byte") as progress:
            yield progress

    @contextmanager
    def show_progress(self, manifests: Mapping[Node, Manifest]) -> Iterator[None]:
        """Show in the block one line of progress for the pushes of these nodes."""
        total = sum(map(size_of, manifests.values()))
        with Progress(total, "push", "byte") as self.progress:
            try:
                yield
            finally:
                self.progress = None

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Exchange recorded calls around a build. Raise NotSent at its end if something was not sent."""
        self.pull_calls()
        try:
            yield
        finally:
            self.push_calls()
        self.raise_unsent()

    @contextmanager
    def sending(self, nodes: Sequence[Node]) -> Iterator[None]:
        """Enclose the sending of all nodes of the store, then send the recorded calls, and say how much was sent. Raise
        UserError if nothing can be sent, or something was not."""
        self.require_writable()
        yield
        self.push_calls()
        mebibytes = self.sent_bytes / 2**20
        sent = f"{self.sent_nodes} nodes ({mebibytes:.1f} MiB) sent to {self.url}"
        log.info("%s. The store has %d nodes.", sent, len(nodes))
        self.raise_unsent()

    def pull_calls(self) -> None:
        """Fetch the calls and judgements that other machines have recorded."""
        with self.going_on_without():
            calls.pull_calls(self.remote, self.copies, self.calls)

    def push_calls(self) -> None:
        """Send the calls and judgements that this machine has recorded, or warn if that fails."""
        segments = calls.unsent_calls(self.copies, self.calls)
        if not segments:
            return
        with self.going_on_without():
            if not self.remote.is_read_only:
                calls.push_calls(self.remote, self.copies, segments)
            return
        self.unsent.append("calls")

    def raise_unsent(self) -> None:
        """Raise NotSent if something could not be sent."""
        if self.unsent:
            names = ", ".join(dict.fromkeys(self.unsent))
            raise NotSent(
                f"store.remote={self.url}: not sent: {names}. All of it is finished in {self.root}. {self.way_to_send}"
            )

    @property
    def way_to_send(self) -> str:
        """A sentence with the command that sends what was not sent."""
        if "sync" not in EXTRAS:
            return "To send it, type the same command again."
        arguments = ["stage=sync", f"outputs={self.root}", f"store.remote={self.url}"]
        return f"To send it: {shlex.join([*program(), *arguments])}"

    def collect(self, needed: set[tuple[str, str]], remove: bool, kept_seconds: float) -> None:
        """List or remove the nodes of the remote that neither `needed` nor a report in the remote reaches, and files
        that no remaining manifest names. Everything younger stays, since its run may not be finished."""
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
        young = {key for key in manifests if ages[f"nodes/{key[0]}/{key[1]}.json"] < kept_seconds}
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
            if age > kept_seconds and name not in named
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


def has_manifest(remote: Remote, node: Node) -> bool:
    return remote.size(name_of(node)) is not None


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


def size_of(manifest: Manifest) -> int:
    """Return the bytes of a node's contents, each counted once."""
    sizes = {entry["sha256"]: int(entry["bytes"]) for entry in manifest["files"].values()}
    return sum(sizes.values())


def by_digest(manifest: Manifest) -> dict[str, list[str]]:
    """Return the names of a node's files by digest."""
    names = dict[str, list[str]]()
    for name, entry in manifest["files"].items():
        names.setdefault(entry["sha256"], []).append(name)
    return names
