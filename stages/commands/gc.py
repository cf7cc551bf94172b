"""`stage=gc`: list or remove nodes that no report, sweep, comparison or link in `outputs/latest` needs."""

import logging
import re
from pathlib import Path

from stages.commands.compare import PAGE, published_nodes
from stages.commands.node_settings import lineage
from stages.config.errors import UserError
from stages.config.schema import Config, Target
from stages.pipeline.provenance import JOB_NODES
from stages.store import locks, sealed_json
from stages.store.manifest import read_manifest
from stages.store.store import Store

log = logging.getLogger(__name__)

LEFT = re.compile(r"([0-9a-f]{12})\.(partial|replaced|pulled)")


def run(cfg: Config, store: Store, *_: object) -> None:
    """List or remove unneeded nodes, and folders that killed commands left.

    A node is needed if a report, a sweep, `outputs/compare.html` or a link in `outputs/latest` depends on it. To free
    its nodes, first delete the folder under `outputs/report/` or `outputs/multirun/`, or the page.
    Raise UserError if the folder is not a store, or a running command uses it and nodes are to be removed."""
    require_store(store)
    if not cfg.gc.remove:
        return list_unreached(store, remove=False)
    with locks.hold_store_alone(store.root) as free:
        held_locks = [
            lock
            for lock in sorted((store.root / "cache" / "locks").glob("*-*"))
            if locks.is_held(lock)
        ]
        if held_locks or not free:
            work = (
                f"{held_locks[0].name.replace('-', ' ', 1)} is being built"
                if held_locks
                else "a command uses it"
            )
            raise UserError(
                f"gc.remove=true: nothing is removed from {store.root}, as {work}. Try again later."
            )
        list_unreached(store, remove=True)


def list_unreached(store: Store, remove: bool) -> None:
    """List unneeded nodes and leftover folders, and remove them if `remove` is set."""
    nodes = published_nodes(store)
    if remove and (
        unread := [folder for folder in store.published_folders() if not read_manifest(folder)]
    ):
        problem = f"{unread[0]} cannot be read, so what it needs is unknown"
        raise UserError(
            f"gc.remove=true: nothing is removed. {problem}. Build it again, or delete its folder first."
        )
    roots = [key for key in nodes if key[0] == "report"]
    roots += [(link.name, link.resolve().name) for link in (store.root / "latest").glob("*")]
    compared = (
        (store.root / PAGE).read_text(encoding="utf-8") if (store.root / PAGE).exists() else ""
    )
    named = {*re.findall(rf"\b{sealed_json.NODE.pattern}\b", compared)}
    for file in store.root.glob(f"multirun/**/{JOB_NODES}"):
        try:
            named |= {*sealed_json.load_json(file, sealed_json.require_keys()).values()}
        except sealed_json.Damaged as error:
            problem = f"{file} cannot be read, so what its sweep needs is unknown"
            if remove:
                way_out = "Type the sweep again, or delete its folder first"
                raise UserError(
                    f"gc.remove=true: nothing is removed. {problem}. {way_out}."
                ) from error
            log.warning("warning: %s.", problem)
    roots += [key for key in nodes if key[1] in named]
    reached = {(m["stage"], m["fingerprint"]) for m in lineage(nodes, *roots)}
    unreached = sorted(
        folder for key, (folder, _) in nodes.items() if key not in reached and not is_linked(folder)
    )
    unreached += [folder for folder in leftover_folders(store) if is_ours(store, folder)]
    for folder in unreached:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        log.info("%s  %.1f MiB%s", folder, size / 2**20, "  removed" if remove else "")
        if remove:
            # under this name, a later gc finds a half-removed node
            if sealed_json.NODE.fullmatch(folder.name):
                gone = folder.with_suffix(".replaced")
                sealed_json.remove(gone)
                folder = folder.rename(gone)
            sealed_json.remove(folder)
    left = "are not needed by a report, a sweep, a comparison or a latest link. gc.remove=true removes them"
    log.info(
        "%d nodes kept; %d folders %s.",
        len(reached),
        len(unreached),
        "are removed" if remove else left,
    )
    if store.mirror:
        store.mirror.collect(reached, remove)


def require_store(store: Store) -> None:
    """Raise UserError if the folder is not a store, as its name may be mistyped."""
    if not store.published_folders() and not (store.root / "cache" / "locks").is_dir():
        raise UserError(
            f"outputs={store.root} is not an artifact store: no node was built there. Correct the path."
        )


def leftover_folders(store: Store) -> list[Path]:
    """Return the folders of nodes that were being built or replaced, and that no command is working on."""
    named = [(p, match[1]) for p in store.root.glob("*/*.*") if (match := LEFT.fullmatch(p.name))]
    return sorted(p for p, fingerprint in named if not store.is_locked(p.parent.name, fingerprint))


def is_ours(store: Store, folder: Path) -> bool:
    """Return whether this store created a node's folder: its lock file exists, and no path is a link."""
    stage, fingerprint = folder.parent.name, folder.name[:12]
    is_locked_here = store.lock_file(stage, fingerprint).exists()
    return stage in [*Target] and not is_linked(folder) and folder.is_dir() and is_locked_here


def is_linked(folder: Path) -> bool:
    """Return whether a node's folder, or that of its stage, is a link: what it leads to may be another store's."""
    return folder.is_symlink() or folder.parent.is_symlink()
